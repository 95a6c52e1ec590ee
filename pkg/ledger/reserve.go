package ledger

import (
	"errors"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// ErrChanged is returned by Reserve when the node changed during each of its tries to plan on it.
var ErrChanged = errors.New("the node's disk space changes too often to plan on it")

// ErrStaleCapacity is returned by Reserve for a volume that is to be made again. The node still publishes the earlier
// volume of that partition, and another volume has its place by now.
var ErrStaleCapacity = errors.New("the node has not published yet that the earlier volume of this claim has ended")

// maxPlanAttempts is how many times Reserve plans before it returns ErrChanged.
const maxPlanAttempts = 5

// Reserve plans the volumes on the node again and records the result for the holder, one record for each volume, in
// their order. It may be repeated, for the same node or another: the last call counts. What the holder itself has there
// does not block it, nor what any holder has there in doubt for these volumes.
//
// A persistent volume that has a place already keeps it. The holder shares that place, so it stays held when the other
// holder gives it up. If the place is on another node, the error is *ElsewhereError. Other errors are placement's when
// the volumes do not fit, ErrBound, ErrNotPublished, ErrStaleCapacity and ErrChanged.
func (l *Ledger) Reserve(key, nodeName string, volumes []VolumeRequest) ([]Record, error) {
	return l.ReserveWithNominations(key, nodeName, volumes, Nominations{})
}

// ReserveWithNominations is Reserve for a pod that must leave to nominated pods what is kept for them.
//
// Planning can take a while. So it is done without the lock, on a snapshot, and the plan is recorded if the node has
// not changed.
func (l *Ledger) ReserveWithNominations(key, nodeName string, volumes []VolumeRequest, nominations Nominations) ([]Record, error) {
	for range maxPlanAttempts {
		r, err := l.newReservation(key, nodeName, volumes)
		if err != nil {
			return nil, err
		}
		plan, err := placement.Plan(make([]placement.Assignment, 0, len(r.requests)), r.snapshot.Usable(r.own, nominations), r.requests)
		if err != nil {
			return nil, err
		}
		if records, err := l.commit(r, volumes, plan); records != nil || err != nil {
			return records, err
		}
	}
	return nil, ErrChanged
}

// reservation is the state that Reserve plans on.
type reservation struct {
	key, nodeName string
	earlier       *holder
	snapshot      *Snapshot
	// records has the records of volumes that have their place. planned are the indices of the other volumes, and
	// requests their requests.
	records  []Record
	planned  []int
	requests []placement.Request
	// own are partitions that do not block the plan: the holder's, or those in doubt for these volumes.
	own map[string]struct{}
}

func (l *Ledger) newReservation(key, nodeName string, volumes []VolumeRequest) (*reservation, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newReservationLocked(key, nodeName, volumes)
}

// newReservationLocked is newReservation with the lock held.
func (l *Ledger) newReservationLocked(key, nodeName string, volumes []VolumeRequest) (*reservation, error) {
	r := &reservation{key: key, nodeName: nodeName, earlier: l.holders[key], snapshot: l.Snapshot(nodeName), records: make([]Record, len(volumes))}
	if r.earlier != nil && r.earlier.source == observed {
		return nil, ErrBound
	}
	if s := r.snapshot; !s.Published || s.Absent || s.Problem != "" {
		return nil, ErrNotPublished
	}
	for i := range volumes {
		if !volumes[i].Persistent {
			r.planned = append(r.planned, i)
			continue
		}
		where, record, ok := l.where(volumes[i].Partition, r.earlier)
		switch {
		case !ok:
			r.planned = append(r.planned, i)
		case where != nodeName:
			return nil, &ElsewhereError{Partition: volumes[i].Partition, Node: where}
		default:
			if _, _, recorded := l.whereRecorded(volumes[i].Partition, r.earlier); !recorded && r.snapshot.reassigned(record) {
				return nil, ErrStaleCapacity
			}
			r.records[i] = record
		}
	}
	r.own = make(map[string]struct{}, len(r.planned))
	for _, at := range r.planned {
		r.own[volumes[at].Partition] = struct{}{}
		r.requests = append(r.requests, volumes[at].WithHeadroom())
	}
	if (r.earlier == nil || r.earlier.node != nodeName) && !l.inDoubt(nodeName, r.own) {
		r.own = nil
	}
	return r, nil
}

// commit records the plan. It returns neither records nor an error if the node or the holder changed since the plan was
// made.
func (l *Ledger) commit(r *reservation, volumes []VolumeRequest, plan []placement.Assignment) ([]Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.newReservationLocked(r.key, r.nodeName, volumes)
	if err != nil {
		return nil, err
	}
	if now.snapshot != r.snapshot || now.earlier != r.earlier || !slices.Equal(now.planned, r.planned) || !slices.Equal(now.records, r.records) || len(now.own) != len(r.own) {
		return nil, nil
	}
	for i, at := range r.planned {
		r.records[at] = Record{
			Partition: volumes[at].Partition, Disk: plan[i].Disk,
			Extent: extent.New(plan[i].Extent.Start, volumes[at].Request.Size),
		}
	}
	l.setHolder(&holder{key: r.key, node: r.nodeName, source: assumed, records: r.records})
	return slices.Clone(r.records), nil
}
