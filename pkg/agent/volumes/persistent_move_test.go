package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// movable is a volume on a disk that its PersistentVolume can have moved.
type movable struct {
	*fixture
	disk                disk.Snapshot
	pv                  *corev1.PersistentVolume
	id, partition, copy string
	content             []byte
}

// newMovable makes a raw volume of 10 MiB that holds some data, at 120 MiB of its disk of 256 MiB.
func newMovable(t *testing.T) *movable {
	t.Helper()
	f := newFixture(t)
	d := f.loopDisk()
	m := &movable{fixture: f, disk: d.Snapshot}
	m.pv, m.partition = f.boundVolume(d, 1, nil)
	m.id, m.copy = m.pv.Spec.CSI.VolumeHandle, diskv1alpha1.CopyID(m.partition)
	m.content = m.read()
	// Where a file system of this size has nothing but data.
	copy(m.content[8*units.MiB:], bytes.Repeat([]byte("not lost "), 1000))
	if err := os.WriteFile(m.device(), m.content, 0); err != nil {
		t.Fatal(err)
	}
	m.content = m.read()
	return m
}

func (m *movable) device() string {
	m.t.Helper()
	v, found := m.Lookup(m.id)
	if !found || v.Device == "" {
		m.t.Fatalf("volume %s has no device: %+v", m.id, v)
	}
	return v.Device
}

func (m *movable) read() []byte {
	m.t.Helper()
	content, err := os.ReadFile(m.device())
	if err != nil {
		m.t.Fatal(err)
	}
	return content
}

// change changes the PersistentVolume, on the API server and on the watch.
func (m *movable) change(change func(pv *corev1.PersistentVolume)) {
	m.t.Helper()
	m.pv = m.pv.DeepCopy()
	change(m.pv)
	m.api.putVolumes(m.pv)
	m.addVolume(m.pv)
	m.persistent.onVolume(m.pv)
}

// requestMove requests the move to that place, in MiB.
func (m *movable) requestMove(start, length int64) {
	m.t.Helper()
	m.change(func(pv *corev1.PersistentVolume) {
		place := diskv1alpha1.Place{Disk: m.disk.ID, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB}}
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(place.Length, resource.BinarySI)}
	})
}

// sync syncs the PersistentVolume, and waits for its move to end.
func (m *movable) sync() {
	m.t.Helper()
	if err := m.persistent.sync(m.t.Context(), m.pv.Name); err != nil {
		m.t.Error(err)
	}
	m.reclaim.mover.running.Wait()
}

// awaitCopy waits until the partition of the copy is made.
func (m *movable) awaitCopy() {
	m.t.Helper()
	testenv.Eventually(m.t, "the copy is begun", func() error {
		if _, _, found := m.node.findVolume(m.copy); !found {
			return fmt.Errorf("there is none; events: %q", m.events.with())
		}
		return nil
	})
}

// beginSlowMove begins a move of a volume without zeros to 180 MiB. At its rate that takes half a minute.
func (m *movable) beginSlowMove() {
	m.t.Helper()
	if err := os.WriteFile(m.device(), bytes.Repeat([]byte{1}, int(10*units.MiB)), 0); err != nil {
		m.t.Fatal(err)
	}
	m.content = m.read()
	m.moveRate = units.MiB
	m.requestMove(180, 40)
	if err := m.persistent.sync(m.t.Context(), m.pv.Name); err != nil {
		m.t.Fatal(err)
	}
	m.awaitCopy()
}

// checkAt asserts that the volume is there, in MiB, and holds what it held.
func (m *movable) checkAt(start, length int64) {
	m.t.Helper()
	v, found := m.Lookup(m.id)
	if !found || v.Start != start*units.MiB || v.Size != length*units.MiB || v.Phase != disk.Formatted {
		m.t.Fatalf("the volume is %+v, want it at %d MiB, %d MiB long; events: %q", v, start, length, m.events.with())
	}
	now := m.read()
	if !bytes.Equal(now[:len(m.content)], m.content) {
		m.t.Error("the volume holds something else now")
	}
	if slices.ContainsFunc(now[len(m.content):], func(b byte) bool { return b != 0 }) {
		m.t.Error("what the volume has got does not read as zeros")
	}
}

// TestMoveVolume asserts that a volume is moved and has its new size, and that its earlier place is wiped.
func TestMoveVolume(t *testing.T) {
	m := newMovable(t)
	m.requestMove(180, 40)
	m.sync()
	m.checkAt(180, 40)
	m.checkPhase(m.copy, disk.Wiping)
	if got := m.events.with("PersistentVolume VolumeMoved", "188743680"); len(got) != 1 {
		t.Errorf("events: %q", m.events.with())
	}
	if volume, _ := m.Owner(disk.Volume{Name: m.id[len("pvc-"):], Partition: m.copy}); volume != m.id {
		t.Errorf("the earlier place is published as one of volume %q", volume)
	}
	m.waitIdle()
	m.checkPhase(m.copy, "")
	// And back, when nothing is left of the first move.
	m.requestMove(60, 50)
	m.content = m.read()
	m.sync()
	m.checkAt(60, 50)
	m.waitIdle()
}

// TestMoveOfNotAttached asserts that a volume is moved that the kernel does not show, before any pod stages it.
func TestMoveOfNotAttached(t *testing.T) {
	m := newMovable(t)
	inService := m.disks.Disks()[0]
	shown := inService
	shown.Device.Path, shown.Snapshot.Volumes = "", slices.Clone(inService.Snapshot.Volumes)
	shown.Snapshot.Volumes[0].Device, shown.Snapshot.Volumes[0].NotAttached = "", "the kernel has no device mapper"
	m.disks.set(shown)
	m.requestMove(180, 40)
	m.sync()
	m.disks.set(inService)
	m.checkAt(180, 40)
}

// TestMoveWaitsForWipe asserts that the second move waits until the place of the first one is wiped.
func TestMoveWaitsForWipe(t *testing.T) {
	m := newMovable(t)
	m.requestMove(180, 20)
	m.sync()
	m.content = m.read()
	m.requestMove(60, 30)
	m.sync()
	m.checkAt(180, 20)
	if got := m.events.with("VolumeNotMoved"); len(got) > 0 {
		t.Errorf("that it waits is reported: %q", got)
	}
	m.waitIdle()
	m.sync()
	m.checkAt(60, 30)
}

// TestMoveInUse asserts that a volume in use stays where it is, that the reason is reported, and that it is moved when
// it is unmounted.
func TestMoveInUse(t *testing.T) {
	m := newMovable(t)
	unmount := m.mount(m.partition)
	m.requestMove(180, 40)
	for range 3 {
		m.sync()
	}
	m.checkPhase(m.copy, "")
	// Once, although it is tried again and again.
	if got := m.events.with("PersistentVolume VolumeNotMoved", "it is mounted on", "delete the pod"); len(got) != 1 {
		t.Errorf("events: %q", m.events.with())
	}
	grown := func(context.Context, Volume) error { return errors.New("called") }
	if _, err := m.Expand(t.Context(), m.id, 40*units.MiB, grown); !errors.Is(err, ErrNotGrown) {
		t.Errorf("it grows: %v", err)
	}
	// Another pod on the node gets it as it is.
	used := false
	if err := m.Stage(t.Context(), m.id, StageOptions{}, func(context.Context, string, string) error { used = true; return nil }); err != nil || !used {
		t.Errorf("staged %t: %v", used, err)
	}
	unmount()
	m.content = m.read()
	m.sync()
	m.checkAt(180, 40)
}

// TestStageMoves asserts that a volume is moved before it is mounted, and that the error of a call whose time is over
// says how far the move is.
func TestStageMoves(t *testing.T) {
	m := newMovable(t)
	m.moveRate = units.MiB
	m.requestMove(180, 40)
	// Zeros take no time: this much is copied.
	if err := os.WriteFile(m.device(), bytes.Repeat([]byte{1}, int(10*units.MiB)), 0); err != nil {
		t.Fatal(err)
	}
	m.content = m.read()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	never := func(context.Context, string, string) error { return errors.New("it is mounted while it is moved") }
	if err := m.Stage(ctx, m.id, StageOptions{FSType: "ext4"}, never); !errors.Is(err, ErrMoving) {
		t.Fatalf("staged while it is moved: %v", err)
	}
	if ctx.Err() != nil {
		t.Error("the answer comes too late for its caller")
	}
	m.moveRate = 0
	m.reclaim.mover.endAll()
	m.reclaim.mover.running.Wait()
	used := ""
	err := m.Stage(t.Context(), m.id, StageOptions{FSType: "ext4"}, func(_ context.Context, device, _ string) error { used = device; return nil })
	if err != nil || used != m.device() {
		t.Errorf("staged %q: %v", used, err)
	}
	m.checkAt(180, 40)
}

// TestMoveGivenUp asserts that a move ends when the PersistentVolume does not name its place any more, or is released,
// that the copy is wiped, and that the volume stays.
func TestMoveGivenUp(t *testing.T) {
	tests := map[string]struct {
		change func(pv *corev1.PersistentVolume)
		stays  bool
	}{
		"no place any more": {func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) }, true},
		"another place": {func(pv *corev1.PersistentVolume) {
			place := diskv1alpha1.Place{Disk: pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk], Extent: diskv1alpha1.Extent{Start: 60 * units.MiB, Length: 40 * units.MiB}}
			pv.Annotations[diskv1alpha1.AnnotationMoveTo] = place.String()
		}, true},
		"released": {released, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMovable(t)
			m.beginSlowMove()
			m.reclaim.enqueue(m.copy, 0)
			m.moveRate = 0
			m.change(test.change)
			m.reclaim.mover.running.Wait()
			m.waitIdle()
			m.checkPhase(m.copy, "")
			if test.stays {
				m.checkAt(120, 10)
				return
			}
			for range 3 {
				if err := m.persistent.sync(t.Context(), m.pv.Name); err != nil {
					t.Error(err)
				}
				m.waitIdle()
			}
			m.checkPhase(m.partition, "")
		})
	}
}

// TestCopyIsWipedAtOnce asserts that a copy that a move has left is wiped when the PersistentVolume does not name its
// place any more, is retained or is gone, without a restart of the agent.
func TestCopyIsWipedAtOnce(t *testing.T) {
	tests := map[string]struct {
		then func(m *movable)
		// length of the volume at last, in MiB.
		length int64
	}{
		"no place any more": {func(m *movable) {
			m.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
			m.sync()
		}, 40},
		"retained": {func(m *movable) {
			m.change(func(pv *corev1.PersistentVolume) {
				pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
				released(pv)
			})
			m.sync()
		}, 10},
		"gone by force": {func(m *movable) {
			if err := m.options.Volumes.GetStore().Delete(m.pv); err != nil {
				t.Error(err)
			}
			m.persistent.onVolumeGone(m.pv)
		}, 10},
	}
	for name, test := range tests {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %t", name, running), func(t *testing.T) {
				m := newMovable(t)
				m.beginSlowMove()
				if !running {
					m.reclaim.mover.endAll()
					m.reclaim.mover.running.Wait()
				}
				m.queued()
				test.then(m)
				m.reclaim.mover.running.Wait()
				m.waitIdle()
				m.checkPhase(m.copy, "")
				m.checkAt(120, test.length)
			})
		}
	}
}

// TestCopyIsKept asserts that a copy that a crash has left is wiped, unless the PersistentVolume names its place: then
// the move goes on.
func TestCopyIsKept(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		m := newMovable(t)
		m.moveRate = units.MiB
		m.requestMove(180, 40)
		ctx, cancel := context.WithCancel(t.Context())
		if err := m.persistent.sync(ctx, m.pv.Name); err != nil {
			t.Fatal(err)
		}
		m.awaitCopy()
		m.reclaim.mover.endAll()
		m.reclaim.mover.running.Wait()
		cancel()
		m.moveRate = 0
		m.checkPhase(m.copy, disk.Copying)
		if !wanted {
			m.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
		}
		m.queued()
		d, _, _ := m.node.findVolume(m.partition)
		m.reclaim.resumeWipes(&d)
		m.waitIdle()
		if wanted {
			m.checkPhase(m.copy, disk.Copying)
			m.sync()
			m.checkAt(180, 40)
			continue
		}
		m.checkPhase(m.copy, "")
		m.checkAt(120, 10)
	}
}

// TestMovePlaceIsReserved asserts that the node puts no other volume where a volume will be moved.
func TestMovePlaceIsReserved(t *testing.T) {
	m := newMovable(t)
	before, _ := m.placer().capacity("ssd")
	unmount := m.mount(m.partition)
	defer unmount()
	m.requestMove(180, 40)
	m.sync()
	if after, _ := m.placer().capacity("ssd"); after != before-40*units.MiB {
		t.Errorf("%d bytes are free of %d", after, before)
	}
}

func (m *movable) placer() *placer { return m.inlineController.placer }

// TestUnreadableMove asserts that a volume is served although its annotation cannot be read, and that this is reported.
func TestUnreadableMove(t *testing.T) {
	m := newMovable(t)
	m.change(func(pv *corev1.PersistentVolume) {
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, "elsewhere")
	})
	m.sync()
	if got := m.events.with("PersistentVolume VolumeMismatch", "DISK/START/LENGTH"); len(got) != 1 {
		t.Errorf("events: %q", m.events.with())
	}
	if err := m.Stage(t.Context(), m.id, StageOptions{}, func(context.Context, string, string) error { return nil }); err != nil {
		t.Error(err)
	}
}

// TestReleasedWithCopy asserts that a released PersistentVolume stays until the copy of its volume is wiped, too.
func TestReleasedWithCopy(t *testing.T) {
	m := newMovable(t)
	m.requestMove(180, 40)
	m.sync()
	m.queued() // nothing wipes the earlier place yet
	m.change(released)
	m.sync()
	m.reclaim.wiper.running.Wait()
	m.checkPhase(m.partition, "")
	m.queued()
	m.syncAsServed(m.pv.Name)
	exists := func() (is bool) {
		m.api.set(func(s *apiServer) { is = s.volumes[m.pv.Name] != nil })
		return is
	}
	if !exists() || !slices.Contains(m.queued(), m.copy) {
		t.Error("the PersistentVolume is gone, or its volume's earlier place will not be wiped")
	}
	m.checkPhase(m.copy, disk.Wiping)
	if err := m.reclaim.release(t.Context(), m.copy); err != nil {
		t.Error(err)
	}
	m.reclaim.wiper.running.Wait()
	m.checkPhase(m.copy, "")
	m.syncAsServed(m.pv.Name)
	if exists() {
		t.Error("the PersistentVolume is still there")
	}
}
