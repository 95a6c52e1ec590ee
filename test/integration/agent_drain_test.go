package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentMovesBetweenDisks asserts that a volume keeps its data while it is moved between two disks and the agent is
// killed at random moments. After each round it is on the disk that its PersistentVolume names. The disk that it has
// left says that it is drained, and is zero.
func TestAgentMovesBetweenDisks(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	// The second disk has larger sectors, and no volume moves there.
	n := newNode(t, 300*units.MiB, 300*units.MiB, 300*units.MiB)
	start := n.process()
	m := &moves{node: n, rng: rand.New(rand.NewPCG(seed, 1)), start: start, agent: start()}
	t.Cleanup(func() { m.kill() })
	status := n.ready()
	devices := []*testDisk{n.disks[0], n.disks[2]}
	ids := []string{of(&status, devices[0]).ID, of(&status, devices[1]).ID}
	v := &growing{device: devices[0], disk: ids[0], at: extent.New(10*units.MiB, 60*units.MiB), content: m.random(16 * units.MiB)}
	v.pv = n.bound("data", "60Mi", corev1.PersistentVolumeFilesystem, of(&status, devices[0]), v.at.Start)
	n.realized(v.pv)
	n.eventually("the volume is staged", func() error { return n.stage(v.pv) })
	if err := os.WriteFile(filepath.Join(n.staging(v.pv), "data"), v.content, 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "sync", "-f", n.staging(v.pv))
	n.unstage(v.pv)
	rounds := 6
	if os.Getenv("BERTH_TORTURE") != "" {
		rounds = 100
	}
	for round := range rounds {
		m.roundBetween(t, v, devices[(round+1)%2], ids[round%2], ids[(round+1)%2])
		if t.Failed() {
			t.Fatalf("round %d of seed %d", round, seed)
		}
	}
	t.Logf("%d moves, the agent was killed %d times", rounds, m.kills)
}

// drain has the node's operator want a disk drained.
func (n *node) drain(id string) {
	n.t.Helper()
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(ndc, func() {
		ndc.Spec.Disks = []diskv1alpha1.DiskDecision{{ID: id, Drain: &diskv1alpha1.DiskDrain{Mode: diskv1alpha1.DrainMove}}}
	})
}

// roundBetween moves the volume from one disk to the other, as the scheduler does for a drain. It kills the agent
// meanwhile, and checks the volume and what it has left.
func (m *moves) roundBetween(t *testing.T, v *growing, target *testDisk, from, id string) {
	t.Helper()
	m.drain(from)
	to := extent.New((4+m.rng.Int64N(200))*units.MiB, v.at.Len())
	m.edit(v.pv, func() {
		place := diskv1alpha1.Place{Disk: id, Extent: diskv1alpha1.Extent{Start: to.Start, Length: to.Len()}}
		metav1.SetMetaDataAnnotation(&v.pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
	})
	for range m.rng.IntN(4) {
		// The random part of this test.
		<-time.After(time.Duration(m.rng.IntN(150)) * time.Millisecond)
		m.kill()
		m.kills++
		m.agent = m.start()
	}
	m.eventually("the volume is on the other disk, and nothing is left on the first one", func() error {
		ndc, err := m.ndc()
		if err != nil {
			return err
		}
		d, a, found := held(&ndc.Status, v.pv)
		if !found || d.ID != id || a.Start != to.Start || a.Phase != diskv1alpha1.PhaseFormatted {
			return fmt.Errorf("it is published as %+v on %s, want %v on %s", a, d.ID, to, id)
		}
		for _, left := range ndc.Status.Disks {
			if left.ID == from && (left.Drain == nil || !left.Drain.Done || left.State != diskv1alpha1.DiskDraining || !strings.Contains(left.Message, "it is drained")) {
				return fmt.Errorf("the disk that it has left is %s, %q, %+v, with %+v", left.State, left.Message, left.Drain, left.Allocations)
			}
		}
		return nil
	})
	if !v.device.zero(t, v.at.Start, v.at.Len()) {
		t.Errorf("the earlier place %v is not zero", v.at)
	}
	m.eventually("the volume is staged", func() error { return m.stage(v.pv) })
	now, err := os.ReadFile(filepath.Join(m.staging(v.pv), "data"))
	if err == nil && !bytes.Equal(now, v.content) {
		err = errors.New("it holds something else")
	}
	if err != nil {
		t.Errorf("after the volume went to %v of the other disk: %v", to, err)
	}
	m.unstage(v.pv)
	testenv.Run(t, "fsck.ext4", "-f", "-n", m.device(v.pv))
	// What the scheduler does.
	m.edit(v.pv, func() { delete(v.pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	if got := v.pv.Annotations[diskv1alpha1.AnnotationMovedTo]; got != id {
		t.Errorf("the PersistentVolume names disk %q", got)
	}
	v.at, v.device, v.disk = to, target, id
}
