package volumes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/publish"
	"github.com/berthdev/berth/pkg/claim"
)

// drainer says how far the disks are that operators have cordoned or want drained. The scheduler's leader gives their
// volumes other places, and the mover moves them. Nothing is kept in memory: the decision is in spec, and the places
// are in the PersistentVolumes.
type drainer struct {
	node    *node
	pods    podStore
	volumes volumeStore
	placer  *placer
	mover   *mover
	ownerOf func(v disk.Volume) (volume, owner string)

	mu sync.Mutex
	// announced has the states that events have announced, by disk.
	announced map[string]diskv1alpha1.DiskState
}

// Limits of the API: how many waits are published, and how long their messages and those of disks are.
const (
	maxDrainWaits   = 32
	maxWaitMessage  = 512
	maxStateMessage = 1024
)

// complete sets state, message and progress of the disks about which operators decided something. It returns how many
// of the disks take no new volume because of that.
func (d *drainer) complete(published []diskv1alpha1.Disk) (cordoned int32) {
	decided := d.node.decisions()
	disks := d.node.inventory.Disks()
	// serving has only the disks in service.
	all, serving := map[string]diskv1alpha1.DiskState{}, map[string]diskv1alpha1.DiskState{}
	for i := range published {
		p := &published[i]
		decision := decided.Decision(p.ID)
		if decision.Compact && !decision.IsCordoned() {
			p.Compaction = d.compaction(disks, p.ID)
		}
		if !decision.IsCordoned() {
			continue
		}
		cordoned++
		if decision.Drain != nil {
			p.Drain = d.progress(disks, p.ID, decision.Drain.Mode)
		}
		state, message := describeDecision(decision, p.Drain)
		all[p.ID] = state
		// Otherwise, why it is out of service matters more.
		if p.State == diskv1alpha1.DiskReady {
			p.State, p.Message = state, message
			serving[p.ID] = state
		}
	}
	d.announce(decided, all)
	countCordoned(serving)
	return cordoned
}

// describeDecision is the state of a disk in service, and what an operator reads beside it.
func describeDecision(decision diskv1alpha1.DiskDecision, progress *diskv1alpha1.DrainProgress) (diskv1alpha1.DiskState, string) {
	switch {
	case progress == nil:
		return diskv1alpha1.DiskCordoned, "it takes no new volumes: spec.disks has unschedulable"
	case progress.Done:
		return diskv1alpha1.DiskDraining, withReason("it is drained: nothing is left on it", decision.Drain.Reason)
	case progress.Volumes == 0:
		return diskv1alpha1.DiskDraining, withReason("it is being drained: what its volumes have left is being wiped", decision.Drain.Reason)
	}
	text := fmt.Sprintf("it is being drained: %d volumes with %s are left", progress.Volumes, sizeText(progress.Bytes))
	if len(progress.Waiting) > 0 {
		text += fmt.Sprintf("; %s: %s", progress.Waiting[0].Volume, progress.Waiting[0].Message)
	}
	return diskv1alpha1.DiskDraining, withReason(text, decision.Drain.Reason)
}

func withReason(text, reason string) string {
	if reason != "" {
		text += " (" + reason + ")"
	}
	return publish.Truncate(text, maxStateMessage)
}

func sizeText(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }

// announce writes an event for each disk whose state an operator has changed.
func (d *drainer) announce(decided *diskv1alpha1.NodeDiskCapacitySpec, states map[string]diskv1alpha1.DiskState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(states)) {
		if d.announced[id] != states[id] {
			d.node.reports.nodeEvent(corev1.EventTypeNormal, eventDiskCordoned, fmt.Sprintf("disk %s is %s: it takes no new volumes", id, states[id]))
			d.announced[id] = states[id]
		}
	}
	for _, id := range slices.Sorted(maps.Keys(d.announced)) {
		// A disk that is away for a while stays cordoned.
		if !decided.Decision(id).IsCordoned() {
			d.node.reports.nodeEvent(corev1.EventTypeNormal, eventDiskUncordoned, fmt.Sprintf("disk %s takes new volumes again, if it is in service", id))
			delete(d.announced, id)
		}
	}
}

// progress is how far a disk is drained.
func (d *drainer) progress(disks []discovery.Disk, id string, mode diskv1alpha1.DrainMode) *diskv1alpha1.DrainProgress {
	p := &diskv1alpha1.DrainProgress{}
	at := slices.IndexFunc(disks, func(of discovery.Disk) bool { return of.ID() == id })
	if at < 0 {
		return p
	}
	of := &disks[at]
	for _, v := range of.Snapshot.Volumes {
		if v.Phase == disk.Wiping || v.Phase == disk.Moved {
			continue
		}
		p.Volumes++
		p.Bytes += v.Length()
		if len(p.Waiting) < maxDrainWaits {
			volume, _ := d.ownerOf(v)
			message := publish.Truncate(d.reason(disks, of, v, mode), maxWaitMessage)
			p.Waiting = append(p.Waiting, diskv1alpha1.DrainWait{Volume: cmp.Or(volume, v.Partition), Message: message})
		}
	}
	p.Done = of.Ready() && len(of.Snapshot.Volumes) == 0
	return p
}

// reason says what a volume waits for.
func (d *drainer) reason(disks []discovery.Disk, of *discovery.Disk, v disk.Volume, mode diskv1alpha1.DrainMode) string {
	if !of.Ready() {
		return "the disk is out of service"
	}
	if v.Phase == disk.Copying || v.Phase == disk.Arriving {
		return "it is the copy of a move that ends, or is given up"
	}
	if v.Ephemeral {
		return d.inlineReason(v, mode)
	}
	pv, moving := d.volumeOf(v.Partition)
	if pv == nil {
		return "it has no PersistentVolume: it is kept until an operator releases it"
	}
	if actionFor(pv) == actionReclaim {
		return "it is wiped when it is not in use"
	}
	if moving == nil {
		return "its PersistentVolume has no place, as one that a CSI sidecar has made: it is not moved"
	}
	if moving.MoveTo == nil || moving.MoveTo.Disk == of.ID() {
		return d.missingRoom(disks, of, v)
	}
	if p := d.mover.progress.of(v.Partition); p.length > 0 {
		return fmt.Sprintf("it is being moved to disk %s: %s of %s are copied", moving.MoveTo.Disk, sizeText(p.published), sizeText(p.length))
	}
	pods := d.podsOf(pv)
	if len(pods) == 0 {
		return fmt.Sprintf("it is moved to disk %s when it is not in use", moving.MoveTo.Disk)
	}
	var names []string
	for _, pod := range pods {
		names = append(names, keyOf(pod).String())
	}
	return fmt.Sprintf("it is moved to disk %s when it is not in use: pod %s uses it%s", moving.MoveTo.Disk, strings.Join(names, ", "), evictionText(pods, mode))
}

// inlineReason is reason for an inline volume.
func (d *drainer) inlineReason(v disk.Volume, mode diskv1alpha1.DrainMode) string {
	for _, pod := range d.pods.all() {
		if _, its := partitionsOf(pod)[v.Partition]; its {
			return fmt.Sprintf("it ends with pod %s%s", keyOf(pod), evictionText([]*corev1.Pod{pod}, mode))
		}
	}
	return "its pod is gone: it is wiped when that is certain"
}

// evictionText says what happens to the pods.
func evictionText(pods []*corev1.Pod, mode diskv1alpha1.DrainMode) string {
	if mode != diskv1alpha1.DrainEvict {
		return ", which an operator may delete"
	}
	for _, pod := range pods {
		if metav1.GetControllerOf(pod) == nil {
			return ", which has no controller and is not evicted: delete it"
		}
	}
	return ", which is evicted as soon as its disruption budget allows it"
}

// volumeOf returns the PersistentVolume of a partition, and what it says if it can be read.
func (d *drainer) volumeOf(partition string) (*corev1.PersistentVolume, *claim.Volume) {
	pvs := d.volumes.of(partition)
	if len(pvs) == 0 {
		return nil, nil
	}
	v, err := d.volumes.read(pvs[0])
	if err != nil {
		return pvs[0], nil
	}
	return pvs[0], &v
}

// podsOf are the pods that use a PersistentVolume, sorted by name.
func (d *drainer) podsOf(pv *corev1.PersistentVolume) []*corev1.Pod {
	ref := pv.Spec.ClaimRef
	if ref == nil {
		return nil
	}
	pods := slices.DeleteFunc(d.pods.all(), func(pod *corev1.Pod) bool { return !usesClaim(pod, ref.Namespace, ref.Name) })
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return pods
}

// missingRoom says what is missing for another place of a volume, as the node sees it.
func (d *drainer) missingRoom(disks []discovery.Disk, of *discovery.Disk, v disk.Volume) string {
	largest, at, others := int64(0), "", 0
	for _, s := range d.placer.freeSpaces() {
		other, ready := inService(disks, s.id)
		if !ready || s.id == of.ID() || s.cordoned || s.class == "" || of.Class != "" && s.class != of.Class || other.Snapshot.SectorSize > of.Snapshot.SectorSize {
			continue
		}
		others++
		if free := s.free.Largest().Len(); free > largest {
			largest, at = free, s.id
		}
	}
	switch {
	case others == 0:
		return fmt.Sprintf("no other disk of class %q on the node takes volumes of a disk with sectors of %d bytes", of.Class, of.Snapshot.SectorSize)
	case largest < v.Length():
		return fmt.Sprintf("no other disk has room for it: %s are missing to %s in one piece; the largest free extent has %s, on disk %s",
			sizeText(v.Length()-largest), sizeText(v.Length()), sizeText(largest), cmp.Or(at, "-"))
	}
	return "it waits for the scheduler to give it another place"
}

// evictions are the pods that use volumes on disks that are drained with evictions, and that a controller makes again.
// A pod with a claim is evicted only when its volume has another place: otherwise it would come back to the same disk.
func (d *drainer) evictions() []diskv1alpha1.EvictionRequest {
	decided := d.node.decisions()
	var all []diskv1alpha1.EvictionRequest
	disks := d.node.inventory.Disks()
	for i := range disks {
		of := &disks[i]
		drain := decided.Decision(of.ID()).Drain
		if drain == nil || drain.Mode != diskv1alpha1.DrainEvict || !of.Ready() {
			continue
		}
		for _, v := range of.Snapshot.Volumes {
			for _, pod := range d.users(of, v) {
				if isAlive(pod) && metav1.GetControllerOf(pod) != nil {
					all = append(all, diskv1alpha1.EvictionRequest{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID})
				}
			}
		}
	}
	return all
}

// users are the pods that must go before a volume can leave a disk.
func (d *drainer) users(of *discovery.Disk, v disk.Volume) []*corev1.Pod {
	if !v.Phase.HasDevice() {
		return nil
	}
	if v.Ephemeral {
		return slices.DeleteFunc(d.pods.all(), func(pod *corev1.Pod) bool {
			_, its := partitionsOf(pod)[v.Partition]
			return !its
		})
	}
	pv, moving := d.volumeOf(v.Partition)
	if pv == nil || moving == nil || moving.MoveTo == nil || moving.MoveTo.Disk == of.ID() {
		return nil
	}
	if inUse, err := describeUse(v.Device); err != nil || inUse == "" {
		// The next pod may come as soon as the volume is moved.
		return nil
	}
	return d.podsOf(pv)
}

// onPod publishes again after a change of a pod, while a disk is drained.
func (d *drainer) onPod(any) { d.node.useChanged() }
