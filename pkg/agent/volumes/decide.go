package volumes

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// diskSpace is the part of a disk's state that a decision needs.
type diskSpace struct {
	id, class string
	// free can be used now.
	free extent.Set
	// wiping is free as soon as a wipe has ended.
	wiping extent.Set
	// cordoned means that only volumes whose place is recorded go there: they were placed before.
	cordoned bool
}

// unplacedVolume is a volume that has no partition yet.
type unplacedVolume struct {
	request.Volume
	// recorded is where the scheduler put it. It is nil if there is no usable record.
	recorded *diskv1alpha1.RecordVolume
	// noRecordReason says why there is no record, or why it is not followed.
	noRecordReason string
	// recordInUse is set when the record is valid but its extent is not free.
	recordInUse bool
	// requiredDisk is a disk that must be in service, because it may hold the volume already.
	requiredDisk string
}

// place is where a volume goes.
type place struct {
	request.Volume
	disk   string
	extent extent.Extent
	// deviation says why the record was not followed. It is empty if it was.
	deviation string
}

// errWaiting: the volumes fit once a wipe in progress has ended.
var errWaiting = errors.New("there is room as soon as volumes that are gone have been wiped")

// decide chooses the places of the volumes: the recorded place if that is possible, else a place by the same algorithm
// as the scheduler's. It places all or none. occupied are the disks with volumes of the pod that have Apart. The error
// is errWaiting, a placement.NoFit, or another one of placement.
func decide(disks []diskSpace, occupied map[string]bool, volumes []unplacedVolume) ([]place, error) {
	followed, rest := followRecords(disks, occupied, volumes)
	if len(rest) == 0 {
		return followed.places, nil
	}
	planned, err := planPlaces(followed.disks, followed.occupied, rest)
	if err == nil {
		return sortPlaces(volumes, append(followed.places, planned...)), nil
	}
	if len(followed.places) > 0 {
		// A record that can be followed only in part must not prevent the other volumes from being placed.
		all := slices.Clone(volumes)
		for i := range all {
			if !slices.ContainsFunc(rest, func(w unplacedVolume) bool { return w.Name == all[i].Name }) {
				all[i].noRecordReason = "the pod's other volumes fit only if this one moves"
			}
		}
		if planned, err := planPlaces(disks, occupied, all); err == nil {
			return planned, nil
		}
	}
	if _, errAfterWipes := planPlaces(withWipingAsFree(followed.disks), followed.occupied, rest); errAfterWipes == nil {
		return nil, errWaiting
	}
	return nil, err
}

// recordedPlaces is the result of followRecords: the places of the volumes that follow their records, and what is left
// of the disks.
type recordedPlaces struct {
	places   []place
	disks    []diskSpace
	occupied map[string]bool
}

// followRecords puts volumes at their recorded places as far as that is possible. It returns the other volumes, each
// with the reason.
func followRecords(disks []diskSpace, occupied map[string]bool, volumes []unplacedVolume) (recordedPlaces, []unplacedVolume) {
	f := recordedPlaces{disks: slices.Clone(disks), occupied: maps.Clone(occupied)}
	if f.occupied == nil {
		f.occupied = map[string]bool{}
	}
	var rest []unplacedVolume
	for _, w := range volumes {
		at, why := f.checkRecord(w)
		if why != "" {
			w.noRecordReason = why
			rest = append(rest, w)
			continue
		}
		e := extent.New(w.recorded.Start, w.recorded.Length)
		if !f.disks[at].free.Contains(e) {
			w.noRecordReason, w.recordInUse = fmt.Sprintf("the recorded extent %v of disk %s is not free", e, w.recorded.Disk), true
			rest = append(rest, w)
			continue
		}
		f.places = append(f.places, place{Volume: w.Volume, disk: w.recorded.Disk, extent: e})
		f.disks[at].free = f.disks[at].free.Remove(e)
		if w.Request.Apart {
			f.occupied[w.recorded.Disk] = true
		}
	}
	return f, rest
}

// checkRecord returns the index of the recorded disk, or the reason why the record is not valid. It does not check
// whether the extent is free.
func (p *recordedPlaces) checkRecord(w unplacedVolume) (int, string) {
	r := w.recorded
	if r == nil {
		return 0, w.noRecordReason
	}
	at := slices.IndexFunc(p.disks, func(d diskSpace) bool { return d.id == r.Disk })
	if at < 0 {
		return 0, fmt.Sprintf("the recorded disk %s is not in service on this node", r.Disk)
	}
	d := &p.disks[at]
	switch {
	case d.class != w.Request.Class:
		return 0, fmt.Sprintf("the recorded disk %s is of class %q, not %q", r.Disk, d.class, w.Request.Class)
	case r.Length != w.Request.Size:
		return 0, fmt.Sprintf("the recorded extent has %d bytes, the volume asks for %d", r.Length, w.Request.Size)
	case w.Request.Apart && p.occupied[r.Disk]:
		return 0, fmt.Sprintf("the recorded disk %s holds another volume of the pod, from which this one must lie apart", r.Disk)
	}
	return at, ""
}

// planPlaces places volumes and ignores all records.
func planPlaces(disks []diskSpace, occupied map[string]bool, volumes []unplacedVolume) ([]place, error) {
	if len(occupied) == 0 {
		return planOnDisks(disks, volumes)
	}
	// Volumes with Apart go first, on the disks that are not occupied.
	var apart, other []unplacedVolume
	for _, w := range volumes {
		if w.Request.Apart {
			apart = append(apart, w)
		} else {
			other = append(other, w)
		}
	}
	var allowed []diskSpace
	for _, d := range disks {
		if !occupied[d.id] {
			allowed = append(allowed, d)
		}
	}
	places, err := planOnDisks(allowed, apart)
	if err != nil {
		return nil, err
	}
	left := slices.Clone(disks)
	for _, p := range places {
		at := slices.IndexFunc(left, func(d diskSpace) bool { return d.id == p.disk })
		left[at].free = left[at].free.Remove(p.extent)
	}
	others, err := planOnDisks(left, other)
	if err != nil {
		return nil, err
	}
	return sortPlaces(volumes, append(places, others...)), nil
}

// planOnDisks places volumes on the disks by the scheduler's algorithm. It ignores records and occupied disks.
func planOnDisks(disks []diskSpace, volumes []unplacedVolume) ([]place, error) {
	if len(volumes) == 0 {
		return nil, nil
	}
	node := &placement.Node{}
	for _, d := range disks {
		// A disk without a class keeps its volumes and gets no new one. So does one that is cordoned.
		if d.class != "" && !d.cordoned {
			node.Disks = append(node.Disks, placement.Disk{ID: d.id, Class: d.class, Free: d.free})
		}
	}
	requests := make([]placement.Request, len(volumes))
	for i, w := range volumes {
		requests[i] = w.Request
	}
	assignments, err := placement.Plan(nil, node, requests)
	if err != nil {
		return nil, err
	}
	places := make([]place, len(volumes))
	for i, a := range assignments {
		places[i] = place{Volume: volumes[i].Volume, disk: a.Disk, extent: a.Extent, deviation: volumes[i].noRecordReason}
	}
	return places, nil
}

// withWipingAsFree returns the disks as they will be when all wipes have ended.
func withWipingAsFree(disks []diskSpace) []diskSpace {
	out := slices.Clone(disks)
	for i := range out {
		out[i].free = out[i].free.Union(out[i].wiping)
	}
	return out
}

// sortPlaces sorts places into the order of the volumes.
func sortPlaces(volumes []unplacedVolume, places []place) []place {
	position := make(map[string]int, len(volumes))
	for i, w := range volumes {
		position[w.Name] = i
	}
	slices.SortFunc(places, func(a, b place) int { return position[a.Name] - position[b.Name] })
	return places
}
