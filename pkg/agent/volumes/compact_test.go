package volumes

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/units"
)

// TestCompaction asserts what a node publishes about a disk that is to be compacted: what can be gained before the
// move, what is waited for, and the end. The volume is moved only when no pod uses it.
func TestCompaction(t *testing.T) {
	m := newMovable(t)
	d := m.Manager.node.inventory.Disks()[0]
	says := func(text string) *diskv1alpha1.Compaction {
		t.Helper()
		p := m.published(m.Manager.node.inventory.Disks()[0])
		if p.State != diskv1alpha1.DiskReady || p.Compaction == nil || !strings.Contains(p.Compaction.Message, text) {
			t.Fatalf("published %s, %+v, want %q", p.State, p.Compaction, text)
		}
		return p.Compaction
	}
	if p := m.published(d); p.Compaction != nil {
		t.Errorf("without a decision: %+v", p.Compaction)
	}
	// Free are 118 MiB before the volume and 125 MiB behind it.
	m.decide(diskv1alpha1.DiskDecision{ID: d.ID(), Compact: true, Unschedulable: true})
	if p := m.published(d); p.Compaction != nil {
		t.Errorf("a cordoned disk: %+v", p.Compaction)
	}
	m.decide(diskv1alpha1.DiskDecision{ID: d.ID(), Compact: true})
	start := d.Snapshot.Free.At(0).Start
	largest, possible := d.Snapshot.Free.Largest().Len(), d.Snapshot.Free.Total()
	planned := says("is moved next")
	if planned.LargestNow != largest || planned.LargestPossible != possible || planned.Moves != 1 || planned.Done || planned.Next == nil ||
		*planned.Next != (diskv1alpha1.CompactionMove{Partition: m.partition, To: diskv1alpha1.Extent{Start: start, Length: 10 * units.MiB}}) {
		t.Errorf("planned: %+v, %+v, want %d and %d", planned, planned.Next, largest, possible)
	}
	pod := claiming("db-0", m.pv)
	if err := m.options.Pods.GetStore().Add(pod); err != nil {
		t.Fatal(err)
	}
	if c := says("pod " + pod.Namespace + "/db-0 uses it"); c.Next != nil || c.Moves != 0 || c.LargestPossible != largest || c.Done {
		t.Errorf("in use: %+v", c)
	}
	if err := m.options.Pods.GetStore().Delete(pod); err != nil {
		t.Fatal(err)
	}
	unmount := m.mount(m.partition)
	if c := says("it is mounted on"); c.Next != nil {
		t.Errorf("mounted: %+v", c)
	}
	unmount()
	before := m.changes.Load()
	m.Unstaged(m.id)
	if m.changes.Load() == before {
		t.Error("nothing is published again when the volume is unstaged")
	}
	m.content = m.read()
	m.requestMove(start/units.MiB, 10)
	if c := says("is being moved"); c.Next != nil || c.Moves != 1 || c.LargestPossible != possible {
		t.Errorf("while it is moved: %+v", c)
	}
	m.sync()
	m.checkAt(start/units.MiB, 10)
	m.checkPhase(m.copy, disk.Wiping)
	if c := says("is being wiped"); c.Next != nil || c.Done || c.LargestPossible != possible {
		t.Errorf("while its earlier place is wiped: %+v", c)
	}
	m.waitIdle()
	if c := says("nothing more"); !c.Done || c.Next != nil || c.Moves != 0 || c.LargestNow != possible {
		t.Errorf("at the end: %+v", c)
	}
}

// reserve has another PersistentVolume reserve that place of the disk, in MiB.
func (m *movable) reserve(id string, start, length int64) {
	m.t.Helper()
	other := m.pv.DeepCopy()
	other.Name, other.UID = "pvc-"+id, types.UID(id)
	other.Spec.CSI.VolumeHandle = other.Name
	other.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(length*units.MiB, resource.BinarySI)}
	other.Spec.CSI.VolumeAttributes = diskv1alpha1.Place{Disk: m.disk.ID, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB}}.Attributes()
	other.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = "ssd"
	m.addVolume(other)
}

// TestCompactionMovesNoOthers asserts that volumes stay that grow, are retained, or have no PersistentVolume.
func TestCompactionMovesNoOthers(t *testing.T) {
	for name, prepare := range map[string]func(m *movable){
		"it grows": func(m *movable) {
			// The volume could go to 2 MiB, and leave 20 MiB in one piece.
			m.reserve("99999999-bbbb-4ccc-8ddd-eeeeeeeeeeee", 14, 96)
			m.reserve("99999999-bbbb-4ccc-8ddd-ffffffffffff", 131, 122)
			m.pv = m.pv.DeepCopy()
			m.pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(11*units.MiB, resource.BinarySI)}
			m.addVolume(m.pv)
		},
		"it is retained": func(m *movable) {
			m.pv = m.pv.DeepCopy()
			m.pv.Spec.PersistentVolumeReclaimPolicy = "Retain"
			released(m.pv)
			m.addVolume(m.pv)
		},
		"it has no PersistentVolume": func(m *movable) {
			if err := m.options.Volumes.GetStore().Delete(m.pv); err != nil {
				m.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMovable(t)
			d := m.Manager.node.inventory.Disks()[0]
			prepare(m)
			m.decide(diskv1alpha1.DiskDecision{ID: d.ID(), Compact: true})
			if c := m.published(d).Compaction; c == nil || c.Next != nil || c.Moves != 0 || !c.Done {
				t.Errorf("published %+v", c)
			}
		})
	}
}
