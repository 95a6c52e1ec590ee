package volumes

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// leaving is a volume of 10 MiB on the first of two disks.
type leaving struct {
	*movable
	source, target discovery.Disk
	left           string
}

func newLeaving(t *testing.T) *leaving {
	t.Helper()
	m := newMovable(t)
	l := &leaving{movable: m, source: m.Manager.node.inventory.Disks()[0], left: diskv1alpha1.LeftID(m.partition)}
	l.target = m.loopDisk()
	l.disks.set(l.source, l.target)
	return l
}

// requestMoveTo requests the move to that place of the second disk, in MiB.
func (l *leaving) requestMoveTo(start, length int64) {
	l.t.Helper()
	l.change(func(pv *corev1.PersistentVolume) {
		place := diskv1alpha1.Place{Disk: l.target.ID(), Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB}}
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(max(place.Length, 10*units.MiB), resource.BinarySI)}
	})
}

// watchAgain has the watch show the PersistentVolume as the API server has it.
func (l *leaving) watchAgain() {
	l.t.Helper()
	l.api.set(func(s *apiServer) { l.pv = s.volumes[l.pv.Name].DeepCopy() })
	l.addVolume(l.pv)
	l.persistent.onVolume(l.pv)
}

func (l *leaving) checkDisk(want discovery.Disk) {
	l.t.Helper()
	if v, found := l.Lookup(l.id); !found || v.Disk != want.ID() {
		l.t.Fatalf("the volume is %+v, want it on disk %s; events: %q", v, want.ID(), l.events.with())
	}
}

// TestMoveToOtherDisk asserts that a volume is moved to another disk, and that the place that it has left is wiped only
// when its PersistentVolume names that disk.
func TestMoveToOtherDisk(t *testing.T) {
	l := newLeaving(t)
	l.requestMoveTo(60, 20)
	l.sync()
	l.checkAt(60, 20)
	l.checkDisk(l.target)
	l.waitIdle()
	l.checkPhase(l.left, disk.Moved)
	l.sync()
	l.watchAgain()
	if got := l.pv.Annotations[diskv1alpha1.AnnotationMovedTo]; got != l.target.ID() {
		t.Errorf("the PersistentVolume names disk %q", got)
	}
	l.sync()
	l.waitIdle()
	l.checkPhase(l.left, "")
	l.checkPhase(l.copy, "")
	if got := l.events.with("PersistentVolume VolumeMoved", l.target.ID()); len(got) != 1 {
		t.Errorf("events: %q", l.events.with())
	}
	// And back.
	l.source, l.target = l.target, l.source
	l.content = l.read()
	l.requestMoveTo(100, 20)
	l.sync()
	l.checkAt(100, 20)
	l.checkDisk(l.target)
}

// TestMoveToWaitsForLeft asserts that a volume does not leave its second disk before the place that it has left on the
// first one is wiped.
func TestMoveToWaitsForLeft(t *testing.T) {
	l := newLeaving(t)
	l.requestMoveTo(60, 10)
	l.sync()
	l.checkDisk(l.target)
	third := l.loopDisk()
	l.disks.set(l.source, l.target, third)
	second := l.target
	l.target = third
	l.requestMoveTo(60, 10)
	l.sync()
	l.checkDisk(second)
	l.checkPhase(l.left, disk.Moved)
	l.watchAgain()
	l.sync()
	l.watchAgain()
	l.waitIdle()
	l.checkPhase(l.left, "")
	l.requestMoveTo(60, 10)
	l.sync()
	l.checkDisk(third)
}

// TestMoveToIsRefused asserts that a volume stays where it is if it is in use, if the other disk is not in service or
// of another class, and that the reason is reported.
func TestMoveToIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(l *leaving)
		reason  string
	}{
		"in use":         {func(l *leaving) { l.mount(l.partition); l.content = l.read() }, "it is mounted on"},
		"another class":  {func(l *leaving) { l.target.Class = "hdd"; l.disks.set(l.source, l.target) }, "within their class only"},
		"out of service": {func(l *leaving) { l.target.Problem = "it is broken"; l.disks.set(l.source, l.target) }, "out of service"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeaving(t)
			test.prepare(l)
			l.requestMoveTo(60, 10)
			l.sync()
			l.checkAt(120, 10)
			l.checkDisk(l.source)
			l.checkPhase(l.copy, "")
			if got := l.events.with("PersistentVolume VolumeNotMoved", test.reason); len(got) != 1 {
				t.Errorf("events: %q", l.events.with())
			}
		})
	}
}

// TestMoveToOfRetained asserts that a volume that is retained leaves its disk, although it does not grow any more.
func TestMoveToOfRetained(t *testing.T) {
	l := newLeaving(t)
	l.change(func(pv *corev1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		released(pv)
	})
	l.requestMove(180, 40)
	l.sync()
	l.checkAt(120, 10)
	l.requestMoveTo(60, 10)
	l.sync()
	l.checkAt(60, 10)
	l.checkDisk(l.target)
	for range 3 {
		l.waitIdle()
		l.watchAgain()
		l.sync()
	}
	l.checkPhase(l.left, "")
}

// beginSlowMoveTo begins a move to the other disk that takes long.
func (l *leaving) beginSlowMoveTo() {
	l.t.Helper()
	testenv.WriteDevice(l.t, l.device(), slices.Repeat([]byte{1}, int(10*units.MiB)))
	l.content = l.read()
	l.moveRate = units.MiB
	l.requestMoveTo(60, 10)
	if err := l.persistent.sync(l.t.Context(), l.pv.Name); err != nil {
		l.t.Fatal(err)
	}
	l.awaitCopy()
}

// TestArrivingIsWiped asserts when an incomplete copy on another disk is wiped: only while the volume itself is in
// service.
func TestArrivingIsWiped(t *testing.T) {
	l := newLeaving(t)
	l.beginSlowMoveTo()
	l.reclaim.mover.endAll()
	l.reclaim.mover.running.Wait()
	l.waitIdle()
	l.checkPhase(l.copy, disk.Arriving)
	l.moveRate = 0
	// Without the disk that decides, the copy may be the volume.
	l.disks.set(l.target)
	l.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	l.reclaim.enqueue(l.copy, 0)
	l.waitIdle()
	l.checkPhase(l.copy, disk.Arriving)
	if err := l.persistent.sync(t.Context(), l.pv.Name); err != nil {
		t.Error(err)
	}
	l.checkPhase(l.partition, "")
	if got := l.events.with("VolumeDiskMissing"); len(got) == 0 {
		t.Errorf("events: %q", l.events.with())
	}
	l.disks.set(l.source, l.target)
	l.sync()
	l.waitIdle()
	l.checkPhase(l.copy, "")
	l.checkAt(120, 10)
}

// commitOnly brings the volume to the moment at which it has left its disk and is on no other: a crash left that. The
// types and GUIDs are those that the engine writes.
func (l *leaving) commitOnly() {
	l.t.Helper()
	testenv.NeedProgram(l.t, "sgdisk")
	v, _ := l.source.Snapshot.Volume(l.partition)
	o := disk.MoveToOptions{Partition: l.partition, Copy: l.copy, Left: l.left, Extent: v.Extent}
	if _, err := l.source.Engine.MoveTo(l.t.Context(), l.target.Engine, o); err != nil {
		l.t.Fatal(err)
	}
	moved, _ := l.target.Engine.Snapshot().Volumes[0], l.target
	if err := l.target.Engine.Close(); err != nil {
		l.t.Fatal(err)
	}
	testenv.RemovePartitions(l.t, l.target.Device.Path)
	testenv.Run(l.t, "sgdisk", "--typecode=1:"+disk.TypeArriving, "--partition-guid=1:"+l.copy, l.target.Device.Path)
	testenv.RemovePartitions(l.t, l.target.Device.Path)
	if moved.Index != 1 {
		l.t.Fatalf("the volume is %+v", moved)
	}
	l.disks.set(l.source)
}

// openTarget takes the second disk into service again.
func (l *leaving) openTarget() {
	l.t.Helper()
	l.target = l.openDisk(l.target.Device.Path)
	l.disks.set(l.source, l.target)
}

// TestDepartedVolume asserts that nothing is made in the place of a volume that has left its disk while the other disk
// is away, that it is published as one that exists, and that the move is ended when the disk is back, whatever the
// PersistentVolume says by then.
func TestDepartedVolume(t *testing.T) {
	for name, change := range map[string]func(pv *corev1.PersistentVolume){
		"the move is wanted":     func(*corev1.PersistentVolume) {},
		"the move is not wanted": func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) },
		"retained":               func(pv *corev1.PersistentVolume) { released(pv); pv.Spec.PersistentVolumeReclaimPolicy = "Retain" },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLeaving(t)
			l.requestMoveTo(120, 10)
			l.commitOnly()
			left, _ := l.source.Engine.Snapshot().Volumes[0], l.source
			if left.Phase != disk.Moved || l.Departed(left) != l.partition {
				t.Fatalf("the volume has left %+v, published as %q", left, l.Departed(left))
			}
			l.restart()
			l.sync()
			stage := func() error {
				return l.Stage(t.Context(), l.id, StageOptions{FSType: "ext4"}, nil)
			}
			if err := stage(); err == nil || !strings.Contains(err.Error(), "moved from disk "+l.source.ID()) {
				t.Errorf("staged: %v", err)
			}
			l.reclaim.enqueue(l.left, 0)
			l.waitIdle()
			l.checkPhase(l.partition, "")
			l.checkPhase(l.left, disk.Moved)
			l.change(change)
			l.openTarget()
			l.reclaim.resumeWipes(&l.target)
			l.waitIdle()
			l.checkAt(120, 10)
			l.checkDisk(l.target)
			if l.Departed(left) != "" {
				t.Error("the volume is published where it was")
			}
		})
	}
}

// TestReleasedAfterDeparture asserts that a released PersistentVolume stays until both places are wiped.
func TestReleasedAfterDeparture(t *testing.T) {
	l := newLeaving(t)
	l.requestMoveTo(120, 10)
	l.commitOnly()
	l.openTarget()
	l.change(released)
	for range 6 {
		if err := l.persistent.sync(t.Context(), l.pv.Name); err != nil && !errors.Is(err, ErrReleased) {
			t.Logf("sync: %v", err)
		}
		l.reclaim.mover.running.Wait()
		l.waitIdle()
		gone := false
		l.api.set(func(s *apiServer) { gone = s.volumes[l.pv.Name] == nil })
		if gone {
			break
		}
		l.watchAgain()
	}
	for _, p := range []string{l.partition, l.copy, l.left} {
		l.checkPhase(p, "")
	}
	l.api.set(func(s *apiServer) {
		if s.volumes[l.pv.Name] != nil {
			t.Error("the PersistentVolume is still there")
		}
	})
}
