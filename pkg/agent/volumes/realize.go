package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// Reasons of events about pods.
const (
	eventPlaced   = "VolumePlaced"
	eventReplaced = "VolumeReplaced"
	eventNoRoom   = "NoRoomForVolume"
	eventInvalid  = "InvalidVolume"
	eventEvicting = "EvictingForVolume"
	eventFailed   = "VolumeFailed"
	eventStrayed  = "VolumeOnOtherNode"
)

// syncPod makes the pod's volumes ready to be mounted.
func (m *Manager) syncPod(ctx context.Context, key types.NamespacedName) error {
	pod := m.cached(key, "")
	if pod == nil || !alive(pod) {
		return nil
	}
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pod", key))
	if isMirror(pod) {
		m.warn(pod, eventInvalid, errMirror.Error())
		return nil
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		// Nobody can help this pod: its volumes cannot be changed.
		m.warn(pod, eventInvalid, err.Error())
		return nil
	}
	seen := m.changesSeen()
	err = m.realize(ctx, pod, volumes)
	switch {
	case err == nil:
		m.clearTrouble(pod)
		return nil
	case errors.Is(err, ErrPodGone):
		return nil
	case errors.Is(err, ErrInvalid):
		// The class's default may change.
		m.warn(pod, eventInvalid, err.Error())
		m.wait(pod, seen)
		return nil
	case errors.Is(err, ErrWaiting), errors.Is(err, ErrOutOfService):
		m.warn(pod, eventFailed, err.Error())
		m.wait(pod, seen)
		return nil
	case errors.Is(err, ErrNoRoom):
		m.wait(pod, seen)
		return m.noRoom(ctx, pod, err)
	}
	m.warn(pod, eventFailed, err.Error())
	return err
}

func (m *Manager) realize(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) error {
	if err := m.place(ctx, pod, volumes, byWatch); err != nil {
		return err
	}
	var group errgroup.Group
	for _, v := range volumes {
		group.Go(func() error { return m.ready(ctx, v, nil) })
	}
	return group.Wait()
}

// changesSeen counts the changes on disks that followDisks has acted upon.
func (m *Manager) changesSeen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// wait lets a change on a disk wake the pod. One that came since the count was seen has
// found nobody waiting, so then the pod looks again at once.
func (m *Manager) wait(pod *corev1.Pod, seen int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changes != seen {
		m.pods.Add(keyOf(pod))
		return
	}
	m.waiting[keyOf(pod)] = struct{}{}
}

// noRoom says so, and after the grace period evicts a pod that somebody makes anew.
func (m *Manager) noRoom(ctx context.Context, pod *corev1.Pod, why error) error {
	m.warn(pod, eventNoRoom, why.Error())
	m.mu.Lock()
	since, ok := m.noRoomSince[pod.UID]
	if !ok {
		since = time.Now()
		m.noRoomSince[pod.UID] = since
	}
	m.mu.Unlock()
	controller := metav1.GetControllerOf(pod)
	if controller == nil || controller.Kind == "DaemonSet" {
		// Nobody would make the pod anew, or only on this node again.
		return nil
	}
	if left := m.options.EvictionGrace - time.Since(since); left > 0 {
		m.pods.AddAfter(keyOf(pod), left)
		return nil
	}
	klog.FromContext(ctx).Info("Pod is evicted, its volumes do not fit here", "reason", why.Error())
	m.options.Recorder.Event(pod, corev1.EventTypeWarning, eventEvicting, "evicted so that it is scheduled anew: "+why.Error())
	err := m.options.Client.Evict(ctx, pod.Namespace, pod.Name, pod.UID)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("cannot evict pod %s: %w", keyOf(pod), err)
}

// warn writes an event unless it is what the pod was told last.
func (m *Manager) warn(pod *corev1.Pod, reason, message string) {
	if m.isNews(pod.UID, reason+message) {
		m.options.Recorder.Event(pod, corev1.EventTypeWarning, reason, message)
	}
}

// isNews reports whether the message is another one than the last about the same.
func (m *Manager) isNews(about types.UID, message string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.told[about] == message {
		return false
	}
	m.told[about] = message
	return true
}

func (m *Manager) clearTrouble(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.noRoomSince, pod.UID)
	delete(m.told, pod.UID)
}

// placeTries bounds how often a decision is made again because a disk changed under it.
const placeTries = 4

// occasion is what led to a pod's volumes being placed.
type occasion int

const (
	// byWatch: the pod is on the watch, which also decides whether it is alive.
	byWatch occasion = iota
	// byKubelet: the same, but the context is the one of the kubelet's call.
	byKubelet
	// proven: the watch has not shown the pod yet, the API server itself called it alive.
	proven
)

// place makes a partition for every volume of the pod that has none.
func (m *Manager) place(ctx context.Context, pod *corev1.Pod, volumes []request.Volume, on occasion) error {
	unlock, err := m.podLocks.lock(ctx, string(pod.UID))
	if err != nil {
		return err
	}
	defer unlock()
	for try := 1; ; try++ {
		places, err := m.choose(pod, volumes)
		if errors.Is(err, ErrNoRoom) && on == byWatch {
			m.giveBack(ctx, pod, volumes)
		}
		if err != nil || len(places) == 0 {
			return err
		}
		var group errgroup.Group
		for _, p := range places {
			group.Go(func() error { return m.create(ctx, pod, p, on) })
		}
		err = group.Wait()
		stale := errors.Is(err, disk.ErrOverlap) || errors.Is(err, disk.ErrNoEntry)
		if err == nil || !stale || try == placeTries {
			return err
		}
	}
}

// giveBack frees what was made for a pod of whose volumes not all fit: they are on the
// node all or none. When it is free the pod wakes, and all its volumes are placed anew.
func (m *Manager) giveBack(ctx context.Context, pod *corev1.Pod, volumes []request.Volume) {
	for _, v := range volumes {
		if _, partition, found := m.find(v.Partition); !found || partition.Phase != disk.Reserved {
			continue
		}
		unlock, err := m.volumeLocks.lock(ctx, v.Partition)
		if err != nil {
			return
		}
		d, partition, found := m.find(v.Partition)
		// Looked at again under the lock: formatted, it stays.
		isMounted := true
		if found && d.Ready() && partition.Phase == disk.Reserved {
			if isMounted, err = mounted(partition.Device); err != nil {
				isMounted = true
			}
		}
		if isMounted {
			unlock()
			continue
		}
		klog.FromContext(ctx).Info("Volume is given back, the pod's others do not fit", "pod", keyOf(pod), "volume", v.Name, "partition", v.Partition)
		m.begin(ctx, d, partition, unlock)
	}
}

// choose decides where the pod's missing volumes go and claims the extents; create
// gives the claims back.
func (m *Manager) choose(pod *corev1.Pod, volumes []request.Volume) ([]place, error) {
	// The pods are listed before mu is taken, and the disks are read while it is held:
	// a claim is given back only after the disk shows the partition.
	others := m.options.Pods.GetStore().List()
	if err := m.checkSizes(volumes); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	disks := m.options.Inventory.Disks()

	missing, occupied := missingOf(pod, volumes, disks)
	if len(missing) == 0 {
		return nil, nil
	}
	spaces := spacesOf(disks)
	for _, c := range m.claimed {
		take(spaces, c.disk, c.extent)
	}
	if _, rest := follow(spaces, occupied, missing); len(rest) > 0 {
		// The node itself will choose: then it keeps off what others were promised.
		for _, object := range others {
			if other, ok := object.(*corev1.Pod); ok && other.UID != pod.UID && len(other.Spec.Volumes) > 0 {
				takeRecorded(spaces, other, disks)
			}
		}
	}
	places, err := decide(spaces, occupied, missing)
	if err != nil {
		return nil, m.refusal(err, missing)
	}
	for _, p := range places {
		m.claimed[p.Partition] = claim{disk: p.disk, extent: p.extent}
	}
	return places, nil
}

// checkSizes refuses what the file system of the class could not hold; what the pod
// itself names is checked by package request.
func (m *Manager) checkSizes(volumes []request.Volume) error {
	for _, v := range volumes {
		if _, _, found := m.find(v.Partition); found || v.FSType != "" {
			continue
		}
		if err := diskv1alpha1.ValidateFSSize(m.options.DefaultFSType(v.Request.Class), v.Request.Size); err != nil {
			return fmt.Errorf("%w: volume %q: %w (the default of class %s)", ErrInvalid, v.Name, err, v.Request.Class)
		}
	}
	return nil
}

// refusal says for a person why the volumes could not be placed.
func (m *Manager) refusal(err error, missing []wanted) error {
	why := ""
	for _, w := range missing {
		if w.recorded == nil {
			why = fmt.Sprintf("; nothing was reserved for it: %s", w.unrecorded)
			break
		}
	}
	var noFit *placement.NoFit
	switch {
	case errors.Is(err, errWaiting):
		return fmt.Errorf("%w on node %s: %w", ErrWaiting, m.node, err)
	case errors.As(err, &noFit):
		return fmt.Errorf("%w on node %s: %w%s", ErrNoRoom, m.node, err, why)
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// missingOf returns the volumes without a partition, and the disks that hold volumes
// of the pod which want to lie apart.
func missingOf(pod *corev1.Pod, volumes []request.Volume, disks []discovery.Disk) ([]wanted, map[string]bool) {
	var missing []wanted
	occupied := map[string]bool{}
	record, recordErr := recordOf(pod)
	for _, v := range volumes {
		if d, _, found := findIn(disks, v.Partition); found {
			if v.Request.Apart {
				occupied[d.ID()] = true
			}
			continue
		}
		w := wanted{Volume: v}
		if recordErr != nil {
			w.unrecorded = recordErr.Error()
		} else if r, ok := record.Volume(v.Name); ok {
			w.recorded = &r
		} else {
			w.unrecorded = "the pod's record does not name the volume"
		}
		missing = append(missing, w)
	}
	return missing, occupied
}

func recordOf(pod *corev1.Pod) (diskv1alpha1.Record, error) {
	value, ok := pod.Annotations[diskv1alpha1.AnnotationAllocation]
	if !ok {
		return diskv1alpha1.Record{}, errors.New("the pod has no record of a reservation")
	}
	return diskv1alpha1.DecodeRecord(value)
}

// spacesOf returns the disks that take volumes.
func spacesOf(disks []discovery.Disk) []space {
	var spaces []space
	for i := range disks {
		d := &disks[i]
		if !d.Ready() {
			continue
		}
		s := space{id: d.ID(), class: d.Class}
		if len(d.Snapshot.Volumes) < disk.MetaEntry-1 {
			s.free = d.Snapshot.Free
		}
		for _, v := range d.Snapshot.Volumes {
			if v.Phase == disk.Wiping {
				s.wiping = s.wiping.Add(v.Extent)
			}
		}
		spaces = append(spaces, s)
	}
	return spaces
}

func take(spaces []space, disk string, e extent.Extent) {
	for i := range spaces {
		if spaces[i].id == disk {
			spaces[i].free = spaces[i].free.Remove(e)
			spaces[i].wiping = spaces[i].wiping.Remove(e)
		}
	}
}

// takeRecorded keeps this decision off extents that the scheduler promised to another
// pod and that are not partitions yet. A record reserves no more than its pod asks for.
func takeRecorded(spaces []space, other *corev1.Pod, disks []discovery.Disk) {
	if !alive(other) {
		return
	}
	volumes, err := request.FromPod(other)
	if err != nil {
		return
	}
	missing, _ := missingOf(other, volumes, disks)
	followed, _ := follow(spaces, nil, missing)
	for _, p := range followed.places {
		take(spaces, p.disk, p.extent)
	}
}

// create makes the partition at its place, and gives back the claim.
func (m *Manager) create(ctx context.Context, pod *corev1.Pod, p place, on occasion) error {
	defer func() {
		m.mu.Lock()
		delete(m.claimed, p.Partition)
		m.mu.Unlock()
	}()
	unlock, err := m.volumeLocks.lock(ctx, p.Partition)
	if err != nil {
		return err
	}
	defer unlock()
	if on == proven {
		// The watch may never show this pod, if it dies before the watch gets there.
		m.own(pod)
		m.releases.AddAfter(p.Partition, m.options.OrphanGrace)
	} else if now := m.cached(keyOf(pod), pod.UID); now == nil || !alive(now) {
		return fmt.Errorf("pod %s: %w", keyOf(pod), ErrPodGone)
	}
	d, err := m.disk(p.disk)
	if err != nil {
		return err
	}
	v, err := d.Engine.Create(ctx, p.Partition, partitionName(pod, p.Name), p.extent, true)
	if err != nil {
		return fmt.Errorf("cannot make a partition for volume %q at %v of disk %s: %w", p.Name, p.extent, p.disk, err)
	}
	if v.Prezeroed {
		m.mu.Lock()
		m.prezeroed[p.Partition] = struct{}{}
		m.mu.Unlock()
	}
	klog.FromContext(ctx).Info("Volume has its partition", "volume", p.Name, "partition", p.Partition, "device", v.Device, "disk", p.disk,
		"extent", p.extent, "deviation", p.deviation)
	m.announce(pod, p, d.Device.Name)
	return nil
}

// announce says where a volume went if that is not where the scheduler put it.
func (m *Manager) announce(pod *corev1.Pod, p place, device string) {
	if p.deviation == "" {
		return
	}
	reason, eventType := eventPlaced, corev1.EventTypeNormal
	if _, recorded := pod.Annotations[diskv1alpha1.AnnotationAllocation]; recorded {
		reason, eventType = eventReplaced, corev1.EventTypeWarning
	}
	m.options.Recorder.Event(pod, eventType, reason, fmt.Sprintf("volume %q was put on %s by the node itself: %s", p.Name, device, p.deviation))
}

func (m *Manager) disk(id string) (discovery.Disk, error) {
	for _, d := range m.options.Inventory.Disks() {
		if d.ID() == id && d.Ready() {
			return d, nil
		}
	}
	return discovery.Disk{}, fmt.Errorf("disk %s: %w", id, ErrOutOfService)
}

// partitionName is what people see in a listing of partitions.
func partitionName(pod *corev1.Pod, volume string) string {
	const limit = 36
	name := pod.Namespace + "/" + pod.Name + "/" + volume
	if len(name) > limit {
		name = name[:limit]
	}
	return name
}

// ready brings a volume that has a partition to phase Formatted. mount, if not nil, is
// called with the formatted device, and may run while the phase is being written:
// both have happened when ready returns nil.
func (m *Manager) ready(ctx context.Context, v request.Volume, mount func(ctx context.Context, device, fsType string) error) error {
	if mount != nil {
		m.countPublishing(v.Partition, 1)
	}
	unlock, err := m.volumeLocks.lock(ctx, v.Partition)
	if mount != nil {
		m.countPublishing(v.Partition, -1)
	}
	if err != nil {
		return err
	}
	defer unlock()
	d, partition, found := m.find(v.Partition)
	switch {
	case !found:
		return fmt.Errorf("volume %q: its partition was released: %w", v.Name, ErrPodGone)
	case !d.Ready():
		return fmt.Errorf("volume %q is on disk %s (%s), which is out of service: %w: %s", v.Name, d.ID(), d.Device.Name, ErrOutOfService, d.Problem)
	case partition.Phase == disk.Wiping:
		return fmt.Errorf("volume %q is being wiped: %w", v.Name, ErrPodGone)
	case partition.Phase == disk.Formatted && mount == nil:
		return nil
	case partition.Phase == disk.Formatted:
		fsType := v.FSType
		if fsType == "" {
			if fsType, err = fileSystemOn(ctx, partition.Device); err != nil {
				return err
			}
		}
		return mount(ctx, partition.Device, fsType)
	}
	return m.format(ctx, d, partition, v, mount)
}

// format makes the file system of a volume in phase Reserved. The caller holds the
// volume's lock.
func (m *Manager) format(ctx context.Context, d discovery.Disk, partition disk.Volume, v request.Volume, mount func(ctx context.Context, device, fsType string) error) error {
	leave, err := m.formatSlots.take(ctx, d.ID(), formatsPerDisk)
	if err != nil {
		return err
	}
	defer leave()
	fsType := v.FSType
	if fsType == "" {
		fsType = m.options.DefaultFSType(v.Request.Class)
	}
	// Only this function mounts a Reserved volume, after its mkfs: an agent died between
	// the mount and the new phase.
	already, err := mounted(partition.Device)
	if err != nil {
		return err
	}
	begin := time.Now()
	m.mu.Lock()
	_, partition.Prezeroed = m.prezeroed[v.Partition]
	made, isMade := m.made[v.Partition]
	m.mu.Unlock()
	switch {
	case isMade:
		fsType = made
	case !already:
		if err := m.mkfs(ctx, fsType, partition); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	if mount == nil && m.isPublishing(v.Partition) {
		// The kubelet's call came meanwhile: it mounts while it writes the phase, which
		// takes about as long. Should it give up, the next one does.
		return nil
	}
	var mounting sync.WaitGroup
	var mountErr error
	if mount != nil {
		mounting.Go(func() { mountErr = mount(ctx, partition.Device, fsType) })
	}
	err = d.Engine.MarkFormatted(context.WithoutCancel(ctx), v.Partition)
	mounting.Wait()
	if err != nil {
		return fmt.Errorf("volume %q: cannot note that it is formatted: %w", v.Name, err)
	}
	m.mu.Lock()
	delete(m.made, v.Partition)
	m.mu.Unlock()
	klog.FromContext(ctx).Info("Volume is formatted", "volume", v.Name, "partition", v.Partition, "device", partition.Device,
		"fsType", fsType, "duration", time.Since(begin))
	return mountErr
}

func (m *Manager) countPublishing(partition string, change int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.publishing[partition] += change; m.publishing[partition] == 0 {
		delete(m.publishing, partition)
	}
}

func (m *Manager) isPublishing(partition string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.publishing[partition] > 0
}

// mkfs makes the file system and remembers it until the disk does. The caller holds the
// volume's lock.
func (m *Manager) mkfs(ctx context.Context, fsType string, partition disk.Volume) error {
	m.mu.Lock()
	// Whatever comes of it, the bytes are not all zeros any more.
	delete(m.prezeroed, partition.Partition)
	m.mu.Unlock()
	if err := mkfs(context.WithoutCancel(ctx), fsType, partition); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made[partition.Partition] = fsType
	return nil
}

// errMirror: the kubelet knows a static pod by another UID than the API server knows its
// mirror by, and a volume belongs to a UID.
var errMirror = errors.New("a static pod cannot have volumes of Berth: use a DaemonSet, or a pod with spec.nodeName")

func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}

// PodRef names a pod as the kubelet does.
type PodRef struct {
	Namespace, Name string
	UID             types.UID
}

// Publish makes the volume of the pod ready and mounts it, by calling mount with the
// device and its file system, while nobody can release it.
func (m *Manager) Publish(ctx context.Context, ref PodRef, volumeID string, mount func(ctx context.Context, device, fsType string) error) error {
	pod, on, err := m.pod(ctx, ref)
	if err != nil {
		return err
	}
	if isMirror(pod) {
		return fmt.Errorf("%w: %w", ErrInvalid, errMirror)
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, v := range volumes {
		if v.ID != volumeID {
			continue
		}
		// The kubelet mounts one volume after the other; none is formatted before all fit.
		if _, partition, found := m.find(v.Partition); !found || partition.Phase == disk.Reserved {
			if !found && !alive(pod) {
				return fmt.Errorf("pod %s/%s is being deleted or has ended, its volume %q is not made any more: %w", ref.Namespace, ref.Name, v.Name, ErrPodGone)
			}
			if alive(pod) {
				if err := m.place(ctx, pod, volumes, on); err != nil {
					return err
				}
			}
		}
		return m.ready(ctx, v, mount)
	}
	return fmt.Errorf("%w: pod %s/%s has no inline volume with the ID %s", ErrInvalid, ref.Namespace, ref.Name, volumeID)
}

// pod returns the pod from the watch, or from the API server itself if the kubelet was
// faster.
func (m *Manager) pod(ctx context.Context, ref PodRef) (pod *corev1.Pod, on occasion, err error) {
	if pod := m.cached(types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, ref.UID); pod != nil {
		return pod, byKubelet, nil
	}
	pod, err = m.options.Client.Pod(ctx, ref.Namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, proven, fmt.Errorf("pod %s/%s does not exist: %w", ref.Namespace, ref.Name, ErrPodGone)
	case err != nil:
		return nil, proven, fmt.Errorf("cannot read pod %s/%s: %w", ref.Namespace, ref.Name, err)
	case isMirror(pod):
		return nil, proven, fmt.Errorf("%w: %w", ErrInvalid, errMirror)
	case pod.UID != ref.UID:
		return nil, proven, fmt.Errorf("pod %s/%s with UID %s does not exist any more: %w", ref.Namespace, ref.Name, ref.UID, ErrPodGone)
	case pod.Spec.NodeName != m.node:
		return nil, proven, fmt.Errorf("%w: pod %s/%s is on node %q, not on %s", ErrInvalid, ref.Namespace, ref.Name, pod.Spec.NodeName, m.node)
	}
	return pod, proven, nil
}
