//go:build vm

package volumes

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/test/units"
)

// onDisk is the volume as its disk has it.
func (m *movable) onDisk() disk.Volume {
	m.t.Helper()
	_, v, found := m.node.findVolume(m.partition)
	if !found {
		m.t.Fatalf("no disk has the volume; events: %q", m.events.with())
	}
	return v
}

// checkPieces asserts that the volume has these further pieces, in MiB: start, length and so on.
func (m *movable) checkPieces(at ...int64) {
	m.t.Helper()
	var got []int64
	for _, p := range m.onDisk().Pieces {
		got = append(got, p.Extent.Start/units.MiB, p.Extent.Len()/units.MiB)
	}
	if !slices.Equal(got, at) {
		m.t.Fatalf("the further pieces are %v MiB, want %v; events: %q", got, at, m.events.with())
	}
}

// stage stages the volume, and returns the device that is mounted.
func (m *movable) stage() (used string) {
	m.t.Helper()
	err := m.Stage(m.t.Context(), m.id, StageOptions{FSType: "ext4"}, func(_ context.Context, device, _ string) error {
		used = device
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return used
}

// TestPiecesOfVolume asserts that a volume gets the pieces that its PersistentVolume names, in their order, while it is
// not in use and then while it is, that another agent finds it so, that a move makes one piece of it, and that a wipe
// frees all of it.
func TestPiecesOfVolume(t *testing.T) {
	m := newMovable(t)
	free := m.disks.Disks()[0].Snapshot.Free.Total()
	m.grantPieces(180, 20, 60, 10)
	m.sync()
	m.checkPieces(180, 20, 60, 10)
	m.checkAt(120, 40)
	if v := m.onDisk(); v.Attachment != disk.DeviceMapper || m.stage() != v.Device {
		t.Errorf("it is attached as %+v", v)
	}
	unmount := m.mount(m.partition)
	device := m.device()
	m.grantPieces(180, 20, 60, 15, 210, 5)
	m.sync()
	m.checkPieces(180, 20, 60, 15, 210, 5)
	if v := m.onDisk(); v.Device != device || v.Length() != 50*units.MiB {
		t.Errorf("it grew while it was in use, and is %+v", v)
	}
	m.restart()
	m.sync()
	m.checkPieces(180, 20, 60, 15, 210, 5)
	unmount()
	m.content = m.read()
	m.requestMove(2, 51)
	m.sync()
	m.checkPieces()
	m.checkAt(2, 51)
	m.waitIdle()
	m.checkPhase(m.copy, "")
	m.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationPieces) })
	m.change(func(pv *corev1.PersistentVolume) { delete(pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	m.sync()
	m.change(func(pv *corev1.PersistentVolume) { setPieces(pv, m.disk.ID, 100, 10) })
	m.change(func(pv *corev1.PersistentVolume) {
		size := pv.Spec.Capacity[corev1.ResourceStorage]
		size.Set(61 * units.MiB)
		pv.Spec.Capacity[corev1.ResourceStorage] = size
	})
	m.content = m.read()
	m.sync()
	m.checkAt(2, 61)
	m.checkPieces(100, 10)
	m.change(released)
	m.sync()
	m.waitIdle()
	if now := m.disks.Disks()[0].Snapshot; now.Free.Total() != free+10*units.MiB || len(now.Volumes) != 0 {
		t.Errorf("%d bytes are free, of %d; volumes: %+v", now.Free.Total(), free+10*units.MiB, now.Volumes)
	}
}

// TestPieceWaitsForUse asserts that a volume that is attached as a partition gets its piece when it is next mounted,
// and that this is reported.
func TestPieceWaitsForUse(t *testing.T) {
	m := newMovable(t)
	unmount := m.mount(m.partition)
	m.grantPieces(180, 20)
	m.sync()
	m.checkPieces()
	if got := m.events.with("PersistentVolume VolumeNotGrown", "delete the pod and start it again"); len(got) != 1 {
		t.Errorf("events: %q", m.events.with())
	}
	if _, err := m.Expand(t.Context(), m.id, 30*units.MiB, nil); err == nil || !strings.Contains(err.Error(), "while no pod uses it") {
		t.Errorf("it grew while it is in use: %v", err)
	}
	unmount()
	m.content = m.read()
	if device := m.stage(); device != m.onDisk().Device || !strings.HasPrefix(device, "/dev/dm-") {
		t.Errorf("%s is mounted", device)
	}
	m.checkPieces(180, 20)
	m.checkAt(120, 30)
}

// TestPiecesOfNewVolume asserts that the file system of a new volume is made over all of its pieces.
func TestPiecesOfNewVolume(t *testing.T) {
	f := newFixture(t)
	d := f.loopDisk()
	pv := volumeAt(t, 20, func(pv *corev1.PersistentVolume) {
		pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = d.ID()
		setPieces(pv, d.ID(), 100, 50, 60, 30)
	})
	f.api.putVolumes(pv)
	f.addVolume(pv)
	if err := f.persistent.sync(t.Context(), pv.Name); err != nil {
		t.Fatal(err)
	}
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	f.checkPhase(partition, disk.Formatted)
	f.mount(partition)
	_, v, _ := f.node.findVolume(partition)
	at, err := mounts.OfDevice(v.Device)
	if err != nil || len(at) != 1 {
		t.Fatalf("%s is mounted on %v: %v", v.Device, at, err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(at[0].Mountpoint, &st); err != nil {
		t.Fatal(err)
	}
	if size := int64(st.Blocks) * st.Bsize; len(v.Pieces) != 2 || size < 70*units.MiB {
		t.Errorf("%+v has a file system of %d MiB", v, size/units.MiB)
	}
}

// TestAttachmentOfClass asserts that a volume is attached as its class wants it when it is next mounted, and not while
// it is in use.
func TestAttachmentOfClass(t *testing.T) {
	m := newMovable(t)
	partition := m.device()
	m.attachment = disk.DeviceMapper
	unmount := m.mount(m.partition)
	if used := m.stage(); used != partition {
		t.Errorf("the attachment of a volume in use was changed: it is %s", used)
	}
	unmount()
	m.content = m.read()
	if used := m.stage(); !strings.HasPrefix(used, "/dev/dm-") || m.onDisk().Attachment != disk.DeviceMapper {
		t.Errorf("%s is mounted", used)
	}
	m.checkAt(120, 10)
	m.attachment = disk.Partition
	if used := m.stage(); used != partition {
		t.Errorf("%s is mounted, want %s", used, partition)
	}
	m.checkAt(120, 10)
	// A new one has it from the start.
	m.attachment = disk.DeviceMapper
	pv, other := m.boundVolume(m.disks.Disks()[0], 2, nil)
	if _, v, _ := m.node.findVolume(other); v.Attachment != disk.DeviceMapper {
		t.Errorf("volume %s is %+v", pv.Name, v)
	}
}
