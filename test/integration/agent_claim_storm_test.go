package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentClaimStorm: many volumes come, grow and go at the same time, most of them
// recorded where others are, while the agent is stopped and started. No volume loses a byte,
// and none gets one of another's.
func TestAgentClaimStorm(t *testing.T) {
	n := newNode(t, 2*units.GiB, 2*units.GiB)
	n.start()
	status := n.ready()
	random := rand.New(rand.NewPCG(1, 2))
	marks := map[*corev1.PersistentVolume]string{}
	mark := func(pv *corev1.PersistentVolume) {
		t.Helper()
		marks[pv] = fmt.Sprintf("only %s may hold this", pv.Name)
		testenv.WriteDevice(t, n.device(pv), []byte(marks[pv]))
	}
	check := func(when string) {
		t.Helper()
		for pv, text := range marks {
			data := make([]byte, len(text))
			device := n.device(pv)
			testenv.Run(t, "blockdev", "--flushbufs", device)
			f, err := os.Open(device)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Read(data); err != nil || !bytes.Equal(data, []byte(text)) {
				t.Errorf("%s: volume %s holds %q, %v", when, pv.Name, data, err)
			}
			f.Close()
		}
	}
	serial := 0
	for round := range 4 {
		var fresh []*corev1.PersistentVolume
		for range 10 {
			serial++
			d := of(&status, n.disks[random.IntN(2)])
			mode := corev1.PersistentVolumeBlock
			if random.IntN(3) == 0 {
				mode = corev1.PersistentVolumeFilesystem
			}
			pvc := n.pvc(fmt.Sprint("claim-", serial), fmt.Sprintf("%dMi", 16+random.IntN(48)), mode)
			start := d.Free[0].Start + random.Int64N(512)*units.MiB
			fresh = append(fresh, n.answer(pvc, d.ID, start, nil))
		}
		var pods []*corev1.Pod
		var all sync.WaitGroup
		for _, pv := range fresh {
			all.Go(func() { n.provide(pv, corev1.VolumeBound) })
		}
		for range 4 {
			serial++
			pods = append(pods, n.pod(fmt.Sprint("pod-", serial), "", nil, n.volumeOf("data", "32Mi", "")))
		}
		if round%2 == 0 {
			n.stop()
			n.start()
		}
		all.Wait()
		for _, pv := range fresh {
			n.realized(pv)
			if *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
				mark(pv)
			}
		}
		for _, pod := range pods {
			n.formatted(pod, "data")
		}
		check("all are there")
		// Half of them go, others grow as far as that is possible, pods go.
		var going []*corev1.PersistentVolume
		for _, pv := range fresh {
			if random.IntN(2) == 0 {
				going = append(going, pv)
				delete(marks, pv)
				continue
			}
			n.grant(pv, fmt.Sprintf("%dMi", 64+random.IntN(64)))
		}
		for _, pv := range going {
			all.Go(func() { n.phase(pv, corev1.VolumeReleased) })
		}
		for _, pod := range pods {
			n.delete(pod)
		}
		if round%2 == 1 {
			n.stop()
			n.start()
		}
		all.Wait()
		for _, pv := range going {
			n.gone(pv)
		}
		check("some have gone")
	}
	for pv := range marks {
		n.phase(pv, corev1.VolumeReleased)
	}
	for pv := range marks {
		n.gone(pv)
	}
	final := n.published("what is left", consistent)
	for _, d := range n.disks {
		for _, e := range of(&final, d).Free {
			if !d.zero(t, e.Start, e.Length) {
				t.Errorf("free space of %s at %d is not zero", d.path, e.Start)
			}
		}
	}
}
