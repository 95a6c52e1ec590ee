package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
)

// persistent is what the manager knows of PersistentVolumes beside their informer. The
// manager's mu guards the maps.
type persistent struct {
	// queue is of names of PersistentVolumes.
	queue workqueue.TypedRateLimitingInterface[string]
	// waiting are the PersistentVolumes that a change on a disk may help.
	waiting map[string]struct{}
	// finished are the PersistentVolumes that the agent itself let go, and which the watch
	// may still show: no partition is made for them any more.
	finished map[types.UID]time.Time
	// had are the partitions of persistent volumes that were formatted, as far as the agent
	// knows. One that vanishes without having been wiped is not made anew: what it held may
	// be where the new one would be.
	had map[string]struct{}
}

func newPersistent() persistent {
	return persistent{
		queue:    queue[string]("volumes"),
		waiting:  map[string]struct{}{},
		finished: map[types.UID]time.Time{},
		had:      map[string]struct{}{},
	}
}

// Reasons of events about PersistentVolumes and claims, beside those about pods.
const (
	eventDiskMissing = "VolumeDiskMissing"
	eventVanished    = "VolumeVanished"
	eventMismatch    = "VolumeMismatch"
	eventNotGrown    = "VolumeNotGrown"
	eventReleasing   = "VolumeNotReleased"
)

// byPartition is the index of PersistentVolumes by the GUID of their partition.
const byPartition = "partition"

// watchVolumes prepares the informer of PersistentVolumes.
func (m *Manager) watchVolumes() error {
	informer := m.options.Volumes
	if err := informer.SetTransform(stripVolume); err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	err := informer.AddIndexers(cache.Indexers{byPartition: func(object any) ([]string, error) {
		pv, ok := object.(*corev1.PersistentVolume)
		if !ok || !claim.IsOurs(pv) {
			return nil, nil
		}
		return []string{diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)}, nil
	}})
	if err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    m.volumeSeen,
		UpdateFunc: func(_, now any) { m.volumeSeen(now) },
		DeleteFunc: m.volumeGone,
	})
	if err != nil {
		return fmt.Errorf("cannot watch PersistentVolumes: %w", err)
	}
	return nil
}

// stripVolume drops what the agent does not need of a PersistentVolume to know what is to
// be on the disks. What it decides to wipe, it decides from a live read.
func stripVolume(object any) (any, error) {
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return object, nil
	}
	slim := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{
		Name: pv.Name, UID: pv.UID, ResourceVersion: pv.ResourceVersion, DeletionTimestamp: pv.DeletionTimestamp,
	}}
	if !claim.IsOurs(pv) {
		return slim, nil
	}
	if disk, ok := pv.Annotations[diskv1alpha1.AnnotationMovedTo]; ok {
		metav1.SetMetaDataAnnotation(&slim.ObjectMeta, diskv1alpha1.AnnotationMovedTo, disk)
	}
	slim.Spec = corev1.PersistentVolumeSpec{
		Capacity:                      pv.Spec.Capacity,
		PersistentVolumeReclaimPolicy: pv.Spec.PersistentVolumeReclaimPolicy,
		VolumeMode:                    pv.Spec.VolumeMode,
		StorageClassName:              pv.Spec.StorageClassName,
		AccessModes:                   pv.Spec.AccessModes,
		NodeAffinity:                  pv.Spec.NodeAffinity,
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: diskv1alpha1.DriverName, VolumeHandle: pv.Spec.CSI.VolumeHandle, FSType: pv.Spec.CSI.FSType,
			VolumeAttributes: map[string]string{},
		}},
	}
	if ref := pv.Spec.ClaimRef; ref != nil {
		slim.Spec.ClaimRef = &corev1.ObjectReference{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}
	}
	for _, key := range []string{
		diskv1alpha1.AttributeDisk, diskv1alpha1.AttributeStart, diskv1alpha1.AttributeLength, diskv1alpha1.AttributeClass,
	} {
		if value, ok := pv.Spec.CSI.VolumeAttributes[key]; ok {
			slim.Spec.CSI.VolumeAttributes[key] = value
		}
	}
	slim.Status.Phase = pv.Status.Phase
	return slim, nil
}

// remember takes in what the node published before this agent: what it had, and since when
// nobody speaks for it.
func (m *Manager) remember(published []diskv1alpha1.Disk) {
	for i := range published {
		for _, a := range published[i].Allocations {
			if a.OrphanedSince != nil {
				m.orphans.found[a.Partition] = orphan{since: a.OrphanedSince.Time}
			}
			if _, ok := diskv1alpha1.VolumeUUID(a.Volume); ok && a.Phase == diskv1alpha1.PhaseFormatted {
				m.persistent.had[a.Partition] = struct{}{}
			}
		}
	}
}

// volumeSeen takes in a PersistentVolume from the watch.
func (m *Manager) volumeSeen(object any) {
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	m.persistent.queue.Add(pv.Name)
	m.options.OwnersChanged()
}

// volumeGone takes in that a PersistentVolume is gone, or is not labelled for this node any more.
func (m *Manager) volumeGone(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	m.mu.Lock()
	delete(m.persistent.waiting, pv.Name)
	delete(m.persistent.finished, pv.UID)
	delete(m.told, pv.UID)
	m.mu.Unlock()
	if claim.IsOurs(pv) {
		// Another one of the same handle may have waited for this, or nobody speaks for the
		// partition now.
		m.releases.Add(diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
	}
	m.options.OwnersChanged()
}

// cachedVolume returns the PersistentVolume from the watch's store, nil if it has none.
func (m *Manager) cachedVolume(name string) *corev1.PersistentVolume {
	object, ok, err := m.options.Volumes.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	pv, ok := object.(*corev1.PersistentVolume)
	if !ok || !claim.IsOurs(pv) {
		return nil
	}
	return pv
}

// volumesOf returns the PersistentVolumes from the watch's store whose volume has the
// partition. It is one, or none; if a person wrote another, more.
func (m *Manager) volumesOf(partition string) []*corev1.PersistentVolume {
	objects, err := m.options.Volumes.GetIndexer().ByIndex(byPartition, partition)
	if err != nil {
		return nil
	}
	var pvs []*corev1.PersistentVolume
	for _, object := range objects {
		if pv, ok := object.(*corev1.PersistentVolume); ok {
			pvs = append(pvs, pv)
		}
	}
	return pvs
}

// wakeVolumes looks again at the PersistentVolumes of a partition.
func (m *Manager) wakeVolumes(partition string) (woken bool) {
	for _, pv := range m.volumesOf(partition) {
		m.persistent.queue.Add(pv.Name)
		woken = true
	}
	return woken
}

// persistentID is the CSI volume ID of a persistent volume on a disk, as the disk says it.
func persistentID(v disk.Volume) (string, bool) {
	if v.Ephemeral {
		return "", false
	}
	return diskv1alpha1.PersistentVolumeID(v.Name, v.Partition)
}

// claimOf is namespace/name of the claim of a persistent volume, as the watch shows it. The
// watch does not show the PersistentVolumes of a stock provisioner: of these it is the claim
// that the volume was made for.
func (m *Manager) claimOf(v disk.Volume) string {
	pvs := m.volumesOf(v.Partition)
	for _, pv := range pvs {
		if owner := claim.Owner(pv); owner != "" {
			return owner
		}
	}
	if len(pvs) > 0 {
		return ""
	}
	if _, orphaned := m.OrphanedSince(v); orphaned {
		return ""
	}
	return noted(v)
}

// noted is namespace/name of the claim that a volume was made for, as the disk says it.
func noted(v disk.Volume) string {
	note, err := claim.ReadNote(v.Note)
	if err != nil || note.Claim == "" {
		return ""
	}
	return note.Namespace + "/" + note.Claim
}

// syncVolume brings the disks in line with a PersistentVolume.
func (m *Manager) syncVolume(ctx context.Context, name string) error {
	pv := m.cachedVolume(name)
	if pv == nil {
		return nil
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("volume", name))
	switch fateOf(pv) {
	case reclaim, letGo:
		return m.releaseVolume(ctx, pv)
	case stay:
		return nil
	}
	v, err := m.understand(pv)
	if err != nil {
		// Nobody can help it: hardly anything of a PersistentVolume can be changed.
		m.warnVolume(pv, eventInvalid, err.Error())
		return nil
	}
	seen := m.changesSeen()
	err = m.serve(ctx, pv, v)
	switch {
	case err == nil:
		m.clearVolumeTrouble(pv)
		return nil
	case errors.Is(err, ErrReleased), errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, errMismatch):
		m.warnVolume(pv, eventMismatch, err.Error())
	case errors.Is(err, errDiskMissing):
		m.warnVolume(pv, eventDiskMissing, err.Error())
	case errors.Is(err, errVanished):
		m.warnVolume(pv, eventVanished, err.Error())
	case errors.Is(err, ErrInvalid):
		// The class's default may change.
		m.warnVolume(pv, eventInvalid, err.Error())
	case errors.Is(err, ErrNoRoom):
		m.warnVolume(pv, eventNoRoom, err.Error())
	case errors.Is(err, ErrNotGrown):
		m.warnVolume(pv, eventNotGrown, err.Error())
	case errors.Is(err, ErrWaiting), errors.Is(err, ErrOutOfService):
		m.warnVolume(pv, eventFailed, err.Error())
	default:
		m.warnVolume(pv, eventFailed, err.Error())
		return err
	}
	m.waitVolume(name, seen)
	return nil
}

// serve makes the volume's partition, if there is none, and makes it ready to be mounted.
func (m *Manager) serve(ctx context.Context, pv *corev1.PersistentVolume, v claim.Volume) error {
	if err := m.realizeVolume(ctx, pv, v, m.stillWatched(pv)); err != nil {
		return err
	}
	if err := m.compare(ctx, pv, v); err != nil {
		return err
	}
	if err := m.makeReady(ctx, requestOf(v), nil); err != nil {
		return err
	}
	m.mu.Lock()
	m.persistent.had[v.Partition] = struct{}{}
	m.mu.Unlock()
	return m.growTo(ctx, v.ID, v.Size)
}

// understand reads a PersistentVolume, and holds that it is one of this node, with an ID
// that a disk can hold.
func (m *Manager) understand(pv *corev1.PersistentVolume) (claim.Volume, error) {
	v, err := claim.ReadVolume(pv)
	if err != nil {
		return claim.Volume{}, err
	}
	if v.Node != diskv1alpha1.NodeLabel(m.node) {
		return claim.Volume{}, fmt.Errorf("PersistentVolume %s: its label %s names node %s, its node affinity %q: it is left alone", pv.Name, diskv1alpha1.LabelNode, m.node, v.Node)
	}
	if _, ok := diskv1alpha1.VolumeUUID(v.ID); !ok {
		return claim.Volume{}, fmt.Errorf("PersistentVolume %s: volumeHandle %.64q is not that of a persistent volume: it must be pvc- and a UUID in lower case", pv.Name, v.ID)
	}
	return v, nil
}

// waitVolume lets a change on a disk wake the PersistentVolume; see wait.
func (m *Manager) waitVolume(name string, seen int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes != seen {
		m.persistent.queue.Add(name)
		return
	}
	m.persistent.waiting[name] = struct{}{}
}

// warnVolume says something about a PersistentVolume and its claim unless that was what was
// said last.
func (m *Manager) warnVolume(pv *corev1.PersistentVolume, reason, message string) {
	if m.isNews(pv.UID, reason+message) {
		m.sayOfVolume(pv, corev1.EventTypeWarning, reason, message)
	}
}

func (m *Manager) sayOfVolume(pv *corev1.PersistentVolume, eventType, reason, message string) {
	version := corev1.SchemeGroupVersion.String()
	m.options.Recorder.About(corev1.ObjectReference{Kind: "PersistentVolume", APIVersion: version, Name: pv.Name, UID: pv.UID}, eventType, reason, message)
	if ref := pv.Spec.ClaimRef; ref != nil && pv.Status.Phase != corev1.VolumeReleased {
		m.options.Recorder.About(corev1.ObjectReference{
			Kind: "PersistentVolumeClaim", APIVersion: version, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID,
		}, eventType, reason, message)
	}
}

func (m *Manager) clearVolumeTrouble(pv *corev1.PersistentVolume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.told, pv.UID)
}
