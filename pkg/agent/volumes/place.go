package volumes

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// maxPlaceTries bounds how often a decision is repeated because a disk changed after it.
const maxPlaceTries = 4

// canRetryPlace reports whether an error of the engine means that the disk changed after the decision, so that another
// decision may succeed.
func canRetryPlace(err error, try int) bool {
	return (errors.Is(err, disk.ErrOverlap) || errors.Is(err, disk.ErrNoEntry)) && try < maxPlaceTries
}

// heldExtent reserves an extent that becomes a partition, or a part of one.
type heldExtent struct {
	disk   string
	extent extent.Extent
}

// placer decides where volumes go on this node.
//
// Invariant: an extent that becomes a partition is held until it is one, so that two decisions never choose the same.
type placer struct {
	node    *node
	pods    podStore
	volumes volumeStore
	// placement returns the policy of a class now, fsType the file system of its volumes that request none.
	placement func(class string) placement.Policy
	fsType    func(class string) string

	// mu is held for a whole decision, and the disks are read while it is held. A held extent is released only after
	// the disk shows the partition.
	mu          sync.Mutex
	held        map[string]heldExtent
	recordWaits recordWaits
}

// listMissing returns which volumes need a place, from the disks of the decision. occupied are the disks with volumes
// of the same pod that have Apart.
type listMissing func(disks []discovery.Disk) (missing []unplacedVolume, occupied map[string]bool, err error)

// choose decides where the volumes go, and holds their extents until releaseHeld is called. It does not use extents
// reserved for others than except, which is a pod UID or a partition.
func (p *placer) choose(except string, list listMissing) ([]place, error) {
	others := p.reservationsExcept(except)
	p.mu.Lock()
	defer p.mu.Unlock()
	disks := p.node.inventory.Disks()
	missing, occupied, err := list(disks)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	for i := range missing {
		// The policy matters if the node itself chooses the place.
		missing[i].Request.Policy = p.placement(missing[i].Request.Class)
	}
	spaces := p.diskSpaces(disks)
	p.removeHeld(spaces, disks, others)
	if _, rest := followRecords(spaces, occupied, missing); len(rest) > 0 {
		if err := p.recordWaits.check(rest, p.node.clock.Now()); err != nil {
			return nil, fmt.Errorf("%w on node %s: %w", ErrWaiting, p.node.name, err)
		}
		// The node itself chooses a place, so it must not use extents reserved for others.
		others.removeFrom(spaces, disks)
	}
	places, err := decide(spaces, occupied, missing)
	if err != nil {
		return nil, p.describeNoFit(err, missing)
	}
	for _, at := range places {
		p.held[at.Partition] = heldExtent{disk: at.disk, extent: at.extent}
	}
	return places, nil
}

// holdGrowth holds the bytes by which the partition grows, until releaseHeld is called.
func (p *placer) holdGrowth(onDisk disk.Volume, size int64, others reservations) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	disks := p.node.inventory.Disks()
	d, now, found := findVolume(disks, onDisk.Partition)
	if !found || !slices.Equal(now.Extents(), onDisk.Extents()) {
		return fmt.Errorf("it changed meanwhile: %w", ErrWaiting)
	}
	// This includes a disk whose table has no entry left: a longer partition needs none.
	spaces := []diskSpace{{id: d.ID(), free: d.Snapshot.Free}}
	p.removeHeld(spaces, disks, others)
	others.removeFrom(spaces, disks)
	length, end := onDisk.Length(), lastOf(onDisk).End
	tail := extent.New(end, size-length)
	if free := spaces[0].free; !free.Contains(tail) {
		most := length
		if behind, ok := free.Holding(extent.New(end, diskv1alpha1.Alignment)); ok {
			most += behind.End - end
		}
		return fmt.Errorf("%w: it has %d bytes, %d are wanted, and %d are possible where it lies", ErrNotGrown, length, size, most)
	}
	p.held[onDisk.Partition] = heldExtent{disk: d.ID(), extent: tail}
	return nil
}

// releaseHeld releases the extent that was held for a partition.
func (p *placer) releaseHeld(partition string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, partition)
}

// freeSpaces are the disks, without what is held and reserved.
func (p *placer) freeSpaces() []diskSpace {
	others := p.reservationsExcept("")
	p.mu.Lock()
	defer p.mu.Unlock()
	disks := p.node.inventory.Disks()
	spaces := p.diskSpaces(disks)
	p.removeHeld(spaces, disks, others)
	others.removeFrom(spaces, disks)
	return spaces
}

// capacity returns how many bytes of a class are free and not reserved, and the largest volume that fits. An empty
// class means all classes.
func (p *placer) capacity(class string) (free, largest int64) {
	for _, s := range p.freeSpaces() {
		if s.class != "" && !s.cordoned && (class == "" || s.class == class) {
			free += s.free.Total()
			largest = max(largest, s.free.Largest().Len())
		}
	}
	return free, largest
}

// checkSize refuses a volume that is too small for the file system. Package request checks the file system that a pod
// names.
func (p *placer) checkSize(v request.Volume) error {
	if v.Block {
		return nil
	}
	fsType, origin := v.FSType, ""
	if fsType == "" {
		fsType, origin = p.fsType(v.Request.Class), fmt.Sprintf(" (the default of class %s)", v.Request.Class)
	}
	if err := diskv1alpha1.ValidateFSSize(fsType, v.Request.Size); err != nil {
		return fmt.Errorf("%w: volume %q: %w%s", ErrInvalid, v.Name, err, origin)
	}
	return nil
}

// removeHeld removes the held extents from the spaces. It also removes those by which volumes were granted to grow, in
// place or by further pieces: their users are waiting for them.
func (p *placer) removeHeld(spaces []diskSpace, disks []discovery.Disk, others reservations) {
	for _, h := range p.held {
		removeExtent(spaces, h.disk, h.extent)
	}
	for _, v := range others.volumes {
		d, onDisk, found := findVolume(disks, v.Partition)
		if !found {
			continue
		}
		for _, missing := range missingOf(v, d.ID(), onDisk) {
			removeExtent(spaces, missing.disk, missing.extent)
		}
	}
	for _, p := range others.ownPieces {
		removeExtent(spaces, p.Disk, extent.New(p.Start, p.Length))
	}
}

// describeNoFit is the error that says why the volumes could not be placed.
func (p *placer) describeNoFit(err error, missing []unplacedVolume) error {
	why := ""
	for _, w := range missing {
		if w.recorded == nil && w.noRecordReason != requestedByCall {
			why = fmt.Sprintf("; nothing was reserved for it: %s", w.noRecordReason)
			break
		}
	}
	var noFit *placement.NoFit
	switch {
	case errors.Is(err, errWaiting):
		return fmt.Errorf("%w on node %s: %w", ErrWaiting, p.node.name, err)
	case errors.As(err, &noFit):
		return fmt.Errorf("%w on node %s: %w%s", ErrNoRoom, p.node.name, err, why)
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// reservations are extents that the scheduler recorded for pods and PersistentVolumes.
type reservations struct {
	pods    []*corev1.Pod
	volumes []claim.Volume
	// ownPieces are the further pieces of the volume that is placed. Its first piece goes elsewhere.
	ownPieces []diskv1alpha1.Place
}

// reservationsExcept lists what the scheduler recorded for all others than except, which is a pod UID or a persistent
// volume's partition.
func (p *placer) reservationsExcept(except string) reservations {
	var out reservations
	for _, pod := range p.pods.all() {
		if string(pod.UID) != except && len(pod.Spec.Volumes) > 0 {
			out.pods = append(out.pods, pod)
		}
	}
	for _, pv := range p.volumes.all() {
		if !claim.IsOurs(pv) || actionFor(pv) != actionServe {
			continue
		}
		switch v, err := p.volumes.read(pv); {
		case err != nil:
		case v.Partition == except:
			out.ownPieces = append(out.ownPieces, v.Pieces...)
		default:
			out.volumes = append(out.volumes, v)
		}
	}
	return out
}

// removeFrom removes the extents that are recorded and are not partitions yet from the spaces.
func (r reservations) removeFrom(spaces []diskSpace, disks []discovery.Disk) {
	for _, pod := range r.pods {
		removeRecorded(spaces, pod, disks)
	}
	for _, v := range r.volumes {
		if _, _, found := findVolume(disks, v.Partition); !found {
			removeExtent(spaces, v.Place.Disk, extent.New(v.Place.Start, v.FirstLength()))
			for _, p := range v.Pieces {
				removeExtent(spaces, p.Disk, extent.New(p.Start, p.Length))
			}
		}
		if v.MoveTo != nil {
			removeExtent(spaces, v.MoveTo.Disk, extent.New(v.MoveTo.Start, v.MoveTo.Length))
		}
	}
}

// removeRecorded removes the extents that the scheduler reserved for another pod and that are not partitions yet. A
// record reserves no more than its pod requests.
func removeRecorded(spaces []diskSpace, other *corev1.Pod, disks []discovery.Disk) {
	if !isAlive(other) {
		return
	}
	volumes, err := request.FromPod(other)
	if err != nil {
		return
	}
	missing, _ := unplacedOf(other, volumes, disks)
	followed, _ := followRecords(spaces, nil, missing)
	for _, p := range followed.places {
		removeExtent(spaces, p.disk, p.extent)
	}
}

// removeExtent takes the extent from the free space of a disk.
func removeExtent(spaces []diskSpace, diskID string, e extent.Extent) {
	for i := range spaces {
		if spaces[i].id == diskID {
			spaces[i].free = spaces[i].free.Remove(e)
			spaces[i].wiping = spaces[i].wiping.Remove(e)
		}
	}
}

// diskSpaces returns the disks that take volumes, with what operators decided about them.
func (p *placer) diskSpaces(disks []discovery.Disk) []diskSpace {
	spaces, decided := diskSpaces(disks), p.node.decisions()
	for i := range spaces {
		spaces[i].cordoned = decided.Decision(spaces[i].id).IsCordoned()
	}
	return spaces
}

// diskSpaces returns the disks that take volumes.
func diskSpaces(disks []discovery.Disk) []diskSpace {
	var spaces []diskSpace
	for i := range disks {
		d := &disks[i]
		if !d.Ready() {
			continue
		}
		s := diskSpace{id: d.ID(), class: d.Class}
		if !d.Snapshot.IsFull() {
			s.free = d.Snapshot.Free
		}
		for _, v := range d.Snapshot.Volumes {
			if v.Phase == disk.Wiping {
				for _, e := range v.Extents() {
					s.wiping = s.wiping.Add(e)
				}
			}
		}
		spaces = append(spaces, s)
	}
	return spaces
}
