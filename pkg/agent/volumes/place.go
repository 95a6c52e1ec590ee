package volumes

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

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
	// What is promised is listed before mu is taken, and the disks are read while it is held:
	// a claim is given back only after the disk shows the partition.
	others := m.promised(string(pod.UID))
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
	for i := range missing {
		m.applyClass(&missing[i].Request)
	}
	spaces := spacesOf(disks)
	m.takeHeld(spaces, disks, others)
	if _, rest := follow(spaces, occupied, missing); len(rest) > 0 {
		// The node itself will choose: then it keeps off what others were promised.
		others.take(spaces, disks)
	}
	places, err := decide(spaces, occupied, missing)
	if err != nil {
		return nil, m.refusal(err, missing)
	}
	for _, p := range places {
		m.claimed[p.Partition] = hold{disk: p.disk, extent: p.extent}
	}
	return places, nil
}

// applyClass adds to a request what its DiskClass says, for the case that the node itself
// chooses the place.
func (m *Manager) applyClass(r *placement.Request) { r.Policy = m.options.Placement(r.Class) }

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
		if w.recorded == nil && w.unrecorded != byCall {
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
		if len(d.Snapshot.Volumes) < disk.MaxVolumes {
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
	v, err := d.Engine.Create(ctx, disk.CreateOptions{
		Partition: p.Partition, Name: partitionName(pod, p.Name), Extent: p.extent, Ephemeral: true,
	})
	if err != nil {
		return fmt.Errorf("cannot make a partition for volume %q at %v of disk %s: %w", p.Name, p.extent, p.disk, err)
	}
	m.noteNew(p.Partition, v.Prezeroed)
	klog.FromContext(ctx).Info("Volume has its partition", "volume", p.Name, "partition", p.Partition, "device", v.Device, "disk", p.disk,
		"extent", p.extent, "deviation", p.deviation)
	m.announce(pod, p, d.Device.Name)
	return nil
}

// noteNew notes what is known of the bytes of a partition that has just been made. The caller
// holds the volume's lock. A volume's partitions all have the same GUID: what was known of
// one that was wiped, and that nobody has disowned yet, must not be believed of the next.
func (m *Manager) noteNew(partition string, prezeroed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.made, partition)
	m.fresh[partition] = prezeroed
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
