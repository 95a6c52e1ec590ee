package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// TestAgentCompacts asserts that a disk whose operator wants it compacted says what can be gained before a volume is
// moved, that the volumes keep their data while the agent is killed, and that all free space is one extent at the end.
func TestAgentCompacts(t *testing.T) {
	n := newNode(t, 300*units.MiB)
	start := n.process()
	m := &moves{node: n, rng: rand.New(rand.NewPCG(1, 2)), start: start, agent: start()}
	t.Cleanup(func() { m.kill() })
	status := n.ready()
	disk := of(&status, n.disks[0])
	free := disk.Free[0].Length
	var volumes []*growing
	for i, at := range []int64{40, 120, 220} {
		v := &growing{disk: disk.ID, content: m.random(8 * units.MiB)}
		v.pv = n.bound(fmt.Sprintf("data-%d", i), "30Mi", corev1.PersistentVolumeFilesystem, disk, at*units.MiB)
		n.realized(v.pv)
		n.eventually("the volume is staged", func() error { return n.stage(v.pv) })
		if err := os.WriteFile(filepath.Join(n.staging(v.pv), "data"), v.content, 0o600); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "sync", "-f", n.staging(v.pv))
		volumes = append(volumes, v)
	}
	free -= 3 * 30 * units.MiB
	m.compact(disk.ID)
	waiting := m.compaction("the volumes are in use", func(c *diskv1alpha1.Compaction) bool {
		return c.Next == nil && strings.Contains(c.Message, "it is mounted on")
	})
	if waiting.Done {
		t.Errorf("while the volumes are mounted: %+v", waiting)
	}
	for _, v := range volumes {
		n.unstage(v.pv)
	}
	m.follow(volumes, free)
	for _, v := range volumes {
		m.eventually("the volume is staged", func() error { return m.stage(v.pv) })
		now, err := os.ReadFile(filepath.Join(m.staging(v.pv), "data"))
		if err != nil || !bytes.Equal(now, v.content) {
			t.Errorf("volume %s holds something else: %v", v.pv.Name, err)
		}
		m.unstage(v.pv)
		testenv.Run(t, "fsck.ext4", "-f", "-n", m.device(v.pv))
	}
	t.Logf("%d moves, the agent was killed %d times", m.moved, m.kills)
}

// compact has the node's operator want a disk compacted.
func (n *node) compact(id string) {
	n.t.Helper()
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(ndc, func() { ndc.Spec.Disks = []diskv1alpha1.DiskDecision{{ID: id, Compact: true}} })
}

// compaction waits until the node's disk publishes a compaction like that.
func (m *moves) compaction(what string, is func(*diskv1alpha1.Compaction) bool) (c *diskv1alpha1.Compaction) {
	m.t.Helper()
	m.eventually(what, func() error {
		ndc, err := m.ndc()
		if err != nil {
			return err
		}
		if c = ndc.Status.Disks[0].Compaction; c == nil || !is(c) {
			return fmt.Errorf("published is %+v", c)
		}
		return nil
	})
	return c
}

// follow does what the scheduler's leader does until the disk is compacted, and kills the agent after each request.
func (m *moves) follow(volumes []*growing, free int64) {
	m.t.Helper()
	for {
		c := m.compaction("there is a next move, or none is left", func(c *diskv1alpha1.Compaction) bool {
			// Before all volumes are unstaged, less is possible.
			return c.Next != nil && c.LargestPossible == free || c.Done
		})
		if c.Done {
			if c.LargestNow != free {
				m.t.Errorf("at the end: %+v, want %d", c, free)
			}
			return
		}
		if m.moved++; m.moved > len(volumes) {
			m.t.Fatalf("move %d: %+v", m.moved, c)
		}
		at := slices.IndexFunc(volumes, func(v *growing) bool {
			return diskv1alpha1.PartitionID(v.pv.Spec.CSI.VolumeHandle) == c.Next.Partition
		})
		pv := volumes[at].pv
		m.edit(pv, func() {
			place := diskv1alpha1.Place{Disk: volumes[at].disk, Extent: c.Next.To}
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
		})
		m.kill()
		m.kills++
		m.agent = m.start()
		m.eventually("the volume is moved", func() error {
			ndc, err := m.ndc()
			if err != nil {
				return err
			}
			if _, a, found := held(&ndc.Status, pv); !found || a.Start != c.Next.To.Start {
				return fmt.Errorf("it is published as %+v, want it at %+v", a, c.Next.To)
			}
			return nil
		})
		m.edit(pv, func() { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	}
}
