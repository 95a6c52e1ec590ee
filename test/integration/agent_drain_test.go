package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestAgentMovesBetweenDisks asserts that a volume keeps its data while it is moved between two disks and the agent is
// killed at random moments. After each round it is on the disk that its PersistentVolume names. The disk that it has
// left says that it is drained, and is zero.
func TestAgentMovesBetweenDisks(t *testing.T) {
	// The second disk has larger sectors, and no volume moves there.
	m := newMoves(t, 300*units.MiB, 300*units.MiB, 300*units.MiB)
	devices := []*testDisk{m.disks[0], m.disks[2]}
	ids := []string{of(&m.status, devices[0]).ID, of(&m.status, devices[1]).ID}
	v := m.volume("data", devices[0], extent.New(10*units.MiB, 60*units.MiB), 16*units.MiB)
	m.unstage(v.pv)
	rounds := 6
	if os.Getenv("BERTH_TORTURE") != "" {
		rounds = 100
	}
	for round := range rounds {
		m.roundBetween(t, v, devices[(round+1)%2], ids[round%2], ids[(round+1)%2])
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d moves, the agent was killed %d times", rounds, m.kills)
}

// decide makes this the only decision of the node's operator.
func (n *node) decide(d diskv1alpha1.DiskDecision) {
	n.t.Helper()
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(ndc, func() { ndc.Spec.Disks = []diskv1alpha1.DiskDecision{d} })
}

// roundBetween moves the volume from one disk to the other, as the scheduler does for a drain. It kills the agent
// meanwhile, and checks the volume and what it has left.
func (m *moves) roundBetween(t *testing.T, v *growing, target *testDisk, from, id string) {
	t.Helper()
	m.decide(diskv1alpha1.DiskDecision{ID: from, Drain: &diskv1alpha1.DiskDrain{Mode: diskv1alpha1.DrainMove}})
	to := extent.New((4+m.rng.Int64N(200))*units.MiB, v.at.Len())
	m.wantAt(v, diskv1alpha1.Place{Disk: id, Extent: diskv1alpha1.Extent{Start: to.Start, Length: to.Len()}})
	for range m.rng.IntN(4) {
		// The random part of this test.
		<-time.After(time.Duration(m.rng.IntN(150)) * time.Millisecond)
		m.restart()
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
	v.at, v.device, v.disk = to, target, id
	m.holds(v)
	// What the scheduler does.
	m.edit(v.pv, func() { delete(v.pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	if got := v.pv.Annotations[diskv1alpha1.AnnotationMovedTo]; got != id {
		t.Errorf("the PersistentVolume names disk %q", got)
	}
}

// TestAgentCompacts asserts that a disk whose operator wants it compacted says what can be gained before a volume is
// moved, that the volumes keep their data while the agent is killed, and that all free space is one extent at the end.
func TestAgentCompacts(t *testing.T) {
	m := newMoves(t, 300*units.MiB)
	disk := of(&m.status, m.disks[0])
	free := disk.Free[0].Length
	var volumes []*growing
	for i, at := range []int64{40, 120, 220} {
		volumes = append(volumes, m.volume(fmt.Sprintf("data-%d", i), m.disks[0], extent.New(at*units.MiB, 30*units.MiB), 8*units.MiB))
	}
	free -= 3 * 30 * units.MiB
	m.decide(diskv1alpha1.DiskDecision{ID: disk.ID, Compact: true})
	waiting := m.compaction("the volumes are in use", func(c *diskv1alpha1.Compaction) bool {
		return c.Next == nil && strings.Contains(c.Message, "it is mounted on")
	})
	if waiting.Done {
		t.Errorf("while the volumes are mounted: %+v", waiting)
	}
	for _, v := range volumes {
		m.unstage(v.pv)
	}
	m.follow(volumes, free)
	for _, v := range volumes {
		m.holds(v)
	}
	t.Logf("%d moves, the agent was killed %d times", m.moved, m.kills)
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
		v := volumes[at]
		m.wantAt(v, diskv1alpha1.Place{Disk: v.disk, Extent: c.Next.To})
		m.restart()
		m.eventually("the volume is moved", func() error {
			ndc, err := m.ndc()
			if err != nil {
				return err
			}
			if _, a, found := held(&ndc.Status, v.pv); !found || a.Start != c.Next.To.Start {
				return fmt.Errorf("it is published as %+v, want it at %+v", a, c.Next.To)
			}
			return nil
		})
		m.edit(v.pv, func() { delete(v.pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
		v.at = extent.New(c.Next.To.Start, c.Next.To.Length)
	}
}
