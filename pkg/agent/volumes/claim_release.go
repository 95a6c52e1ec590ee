package volumes

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// fate is what is to become of a PersistentVolume and its partition.
type fate int

const (
	// serve: the volume is to be on the disk, ready to be mounted.
	serve fate = iota
	// stay: nothing is made and nothing wiped. It is retained, or still bound.
	stay
	// letGo: the PersistentVolume may go, its partition stays.
	letGo
	// reclaim: the partition is wiped, and then the PersistentVolume goes.
	reclaim
)

// fateOf decides by the PersistentVolume alone. To wipe by it, it must be fresh from the
// API server.
func fateOf(pv *corev1.PersistentVolume) fate {
	deleted := pv.DeletionTimestamp != nil
	// Anything but Delete, also what nobody knows today, means to keep.
	dies := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	switch phase := pv.Status.Phase; {
	case deleted && phase == corev1.VolumeBound:
		// Its claim may be in use. When that goes, the phase changes.
		return stay
	case deleted && dies:
		return reclaim
	case deleted:
		return letGo
	case phase == corev1.VolumeReleased || phase == corev1.VolumeFailed:
		if dies {
			return reclaim
		}
		return stay
	}
	return serve
}

// Unstaged says that the kubelet has unstaged the volume: its release may have waited for that.
func (m *Manager) Unstaged(volumeID string) {
	m.wakeVolumes(diskv1alpha1.PartitionID(volumeID))
}

// releaseVolume wipes the volume of a PersistentVolume whose claim is gone, and then lets
// the PersistentVolume go. It acts on what the API server itself says now; an error means
// that nothing is known, and then nothing is wiped.
func (m *Manager) releaseVolume(ctx context.Context, pv *corev1.PersistentVolume) error {
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	if m.beingWiped(partition) {
		// Its end brings the PersistentVolume back here.
		return nil
	}
	unlock, err := m.volumeLocks.lock(ctx, partition)
	if err != nil {
		return err
	}
	begun := false
	defer func() {
		if !begun {
			unlock()
		}
	}()
	live, err := m.options.Client.Volume(ctx, pv.Name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot ask the API server for PersistentVolume %s, its volume is kept: %w", pv.Name, err)
	}
	if live.UID != pv.UID || !claim.IsOurs(live) || live.Spec.CSI.VolumeHandle != pv.Spec.CSI.VolumeHandle {
		// The watch will show it.
		return nil
	}
	becomes := fateOf(live)
	if becomes != letGo && becomes != reclaim {
		return nil
	}
	v, err := m.understand(live)
	if err != nil {
		m.warnVolume(live, eventReleasing, fmt.Sprintf("%v; if no disk holds its volume, remove the finalizer %s", err, diskv1alpha1.FinalizerVolume))
		return nil
	}
	if becomes == letGo {
		return m.let(ctx, live, "its reclaim policy is "+string(live.Spec.PersistentVolumeReclaimPolicy))
	}
	begun, err = m.reclaimVolume(ctx, live, v, unlock)
	if client.IsGoneOrChanged(err) {
		// Somebody was faster; what they made of it is looked at anew.
		m.persistent.queue.AddRateLimited(live.Name)
		return nil
	}
	return err
}

// reclaimVolume wipes the partition, or finishes when there is none. The caller holds the
// volume's lock; begun says that the wiping has taken it over.
func (m *Manager) reclaimVolume(ctx context.Context, live *corev1.PersistentVolume, v claim.Volume, unlock func()) (begun bool, err error) {
	if others, err := m.othersOf(ctx, live, v); err != nil {
		return false, err
	} else if others != "" {
		if live.DeletionTimestamp != nil {
			return false, m.let(ctx, live, "PersistentVolume "+others+" has the same volumeHandle, and its volume")
		}
		m.warnVolume(live, eventReleasing, "PersistentVolume "+others+" has the same volumeHandle: nothing is wiped. Delete the one that is wrong")
		return false, nil
	}
	disks := m.options.Inventory.Disks()
	d, on, found := findIn(disks, v.Partition)
	switch {
	case !found:
		if _, inService := diskOf(disks, diskFor(live, v)); !inService {
			m.warnVolume(live, eventDiskMissing, fmt.Sprintf("disk %s, which the volume was put on, is not in service on node %s: it cannot be wiped. If the disk is gone for good, remove the finalizer %s", diskFor(live, v), m.node, diskv1alpha1.FinalizerVolume))
			m.waitVolume(live.Name, m.changesSeen())
			return false, nil
		}
		return false, m.finish(ctx, live)
	case !d.Ready():
		// A disk that comes back wakes all.
		m.warnVolume(live, eventDiskMissing, fmt.Sprintf("the volume is on disk %s (%s), which is out of service: %s. It is wiped when the disk is back", d.ID(), d.Device.Name, d.Problem))
		return false, nil
	}
	if err := same(disks, on, v); err != nil {
		m.warnVolume(live, eventReleasing, err.Error())
		return false, nil
	}
	if on.Phase != disk.Wiping {
		why, err := inUseBy(on.Device)
		if err != nil {
			return false, err
		}
		if why != "" {
			m.warnVolume(live, eventReleasing, "the volume is wiped once nobody uses it: "+why)
			m.persistent.queue.AddAfter(live.Name, inUseRetry)
			return false, nil
		}
		if err := m.condemn(ctx, live); err != nil {
			return false, err
		}
	}
	m.begin(ctx, d, on, unlock)
	return true, nil
}

// condemn deletes the PersistentVolume as it was read, which our finalizer keeps until the
// volume is wiped. From here on nobody can bind it again, or change its policy unseen.
func (m *Manager) condemn(ctx context.Context, live *corev1.PersistentVolume) error {
	if live.DeletionTimestamp != nil {
		return nil
	}
	held, err := m.options.Client.AddFinalizer(ctx, live)
	if err == nil {
		err = m.options.Client.DeleteVolume(ctx, held)
	}
	if err != nil {
		return fmt.Errorf("cannot delete PersistentVolume %s, its volume is kept: %w", live.Name, err)
	}
	return nil
}

// finish lets the PersistentVolume go whose volume is on no disk any more.
func (m *Manager) finish(ctx context.Context, live *corev1.PersistentVolume) error {
	if live.DeletionTimestamp == nil {
		if err := m.condemn(ctx, live); err != nil {
			return err
		}
		// The watch brings it back here.
		return nil
	}
	return m.let(ctx, live, "its volume is wiped")
}

// let takes our finalizer off the PersistentVolume that was read.
func (m *Manager) let(ctx context.Context, live *corev1.PersistentVolume, why string) error {
	m.mu.Lock()
	m.persistent.finished[live.UID] = time.Now()
	m.mu.Unlock()
	err := m.options.Client.RemoveFinalizer(ctx, live)
	if err == nil || apierrors.IsNotFound(err) {
		klog.FromContext(ctx).Info("PersistentVolume may go", "why", why)
		return nil
	}
	m.mu.Lock()
	delete(m.persistent.finished, live.UID)
	m.mu.Unlock()
	if client.IsGoneOrChanged(err) {
		m.persistent.queue.AddRateLimited(live.Name)
		return nil
	}
	return fmt.Errorf("cannot remove the finalizer of PersistentVolume %s: %w", live.Name, err)
}

// othersOf names another PersistentVolume with the same volumeHandle. While there is one,
// the partition is not wiped on behalf of this.
func (m *Manager) othersOf(ctx context.Context, live *corev1.PersistentVolume, v claim.Volume) (string, error) {
	for _, other := range m.volumesOf(v.Partition) {
		if other.Name != live.Name {
			return other.Name, nil
		}
	}
	if live.Name == v.ID {
		return "", nil
	}
	// The one that was made with the volume may have lost its label.
	other, err := m.options.Client.Volume(ctx, v.ID)
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("cannot ask the API server for PersistentVolume %s, the volume is kept: %w", v.ID, err)
	case claim.IsOurs(other) && other.Spec.CSI.VolumeHandle == v.ID:
		return other.Name, nil
	}
	return "", nil
}

// same holds that what is on the disk is the volume of the PersistentVolume, and that there
// is no other with its GUID.
func same(disks []discovery.Disk, on disk.Volume, v claim.Volume) error {
	if id, ok := persistentID(on); !ok || id != v.ID {
		return fmt.Errorf("%w: partition %s holds volume %q of somebody else, not %s", errMismatch, on.Partition, on.Name, v.ID)
	}
	return alone(disks, on.Partition)
}

// alone holds that no second disk in service has the partition too. Which of them holds
// what the volume's user wrote last, nobody could tell.
func alone(disks []discovery.Disk, partition string) error {
	var at string
	for i := range disks {
		if _, ok := disks[i].Snapshot.Volume(partition); !ok || !disks[i].Ready() {
			continue
		}
		if at != "" {
			return fmt.Errorf("%w: partition %s is on disk %s and on disk %s: one must be a copy, take it away", errMismatch, partition, at, disks[i].ID())
		}
		at = disks[i].ID()
	}
	return nil
}

// inUseBy says who uses the device, or nothing, as far as the agent can see. Who keeps it
// open exclusively keeps it from being wiped, too.
func inUseBy(device string) (string, error) {
	targets, err := disk.Mounts(device)
	if err != nil {
		return "", err
	}
	if len(targets) > 0 {
		return "it is mounted on " + targets[0], nil
	}
	// A raw block volume is published by mounting its device node on a file. Where a node is
	// a container itself, its /dev is a tmpfs; others are not looked at, they may hang.
	binds, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return info.FSType != "devtmpfs" && info.FSType != "tmpfs" || filepath.Base(info.Root) != filepath.Base(device), false
	})
	if err != nil {
		return "", fmt.Errorf("cannot read the mount table: %w", err)
	}
	for _, b := range binds {
		if b.FSType == "devtmpfs" || sameDevice(b.Mountpoint, device) {
			return "its device is published on " + b.Mountpoint, nil
		}
	}
	return "", nil
}

// sameDevice reports whether both paths lead to the same block device.
func sameDevice(a, b string) bool {
	numberOf := func(path string) (uint64, bool) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Type() != fs.ModeDevice {
			return 0, false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		return st.Rdev, ok
	}
	x, isDevice := numberOf(a)
	y, isToo := numberOf(b)
	return isDevice && isToo && x == y
}

// lookForVolume asks the API server whether there is a PersistentVolume for a partition
// that the watch shows none for. Whatever it says, the partition stays.
func (m *Manager) lookForVolume(ctx context.Context, v disk.Volume) error {
	if m.wakeVolumes(v.Partition) {
		return nil
	}
	id, ok := persistentID(v)
	if !ok {
		return nil
	}
	pv, err := m.options.Client.Volume(ctx, id)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot ask the API server for PersistentVolume %s: %w", id, err)
	}
	if err == nil && claim.IsOurs(pv) && pv.Spec.CSI.VolumeHandle == id {
		m.noteOrphan(ctx, v, false)
		m.explainUnwatched(pv)
		return nil
	}
	m.noteOrphan(ctx, v, true)
	return nil
}

// explainUnwatched says why the watch does not show the PersistentVolume of a volume that is
// here: somebody changed its label, or moved the disk. One of a stock provisioner has no
// label, and that is well so: not the agent wipes it, but the provisioner's call.
func (m *Manager) explainUnwatched(pv *corev1.PersistentVolume) {
	here, label := diskv1alpha1.NodeLabel(m.node), pv.Labels[diskv1alpha1.LabelNode]
	v, err := claim.ReadVolume(pv)
	switch {
	case err == nil && v.Node != here:
		m.warnVolume(pv, eventStrayed, fmt.Sprintf("the volume is on a disk of node %s, its PersistentVolume is for node %q: was the disk moved? The volume is kept", m.node, v.Node))
	case label != here && (label != "" || slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume)):
		m.warnVolume(pv, eventMismatch, fmt.Sprintf("its label %s is %q, its volume is on node %s: nothing is done for it until the label is %q", diskv1alpha1.LabelNode, label, m.node, here))
	}
}

// askForVolumes asks for the PersistentVolumes of the partitions that the watch shows none for.
func (m *Manager) askForVolumes() {
	disks := m.options.Inventory.Disks()
	for i := range disks {
		if !disks[i].Ready() {
			continue
		}
		for _, v := range disks[i].Snapshot.Volumes {
			if _, ok := persistentID(v); ok && len(m.volumesOf(v.Partition)) == 0 {
				m.releases.Add(v.Partition)
			}
		}
	}
}
