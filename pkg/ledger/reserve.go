package ledger

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// ErrBound is returned by Reserve for a pod that the API server has already bound.
var ErrBound = errors.New("the pod is already bound")

// ErrNotPublished is returned by Reserve for a node that publishes no capacity, publishes an invalid one, or has no
// Node.
var ErrNotPublished = errors.New("the node publishes no disk space")

// ErrChanged is returned by Reserve when the node changed during each of its tries to plan on it.
var ErrChanged = errors.New("the node's disk space changes too often to plan on it")

// ErrStaleCapacity is returned by Reserve for a volume that is to be made again. The node still publishes the earlier
// volume of that partition, and another volume has its place by now.
var ErrStaleCapacity = errors.New("the node has not published yet that the earlier volume of this claim has ended")

// ElsewhereError is the error of Reserve for a persistent volume that already has its place on another node.
type ElsewhereError struct{ Partition, Node string }

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("the volume of partition %s is on node %s already", e.Partition, e.Node)
}

// maxPlanAttempts is how many times Reserve plans before it returns ErrChanged.
const maxPlanAttempts = 5

// VolumeRequest is a volume that is to be placed.
type VolumeRequest struct {
	// Partition is the GUID that the volume's partition will have.
	Partition string
	Request   placement.Request
	// Headroom is how many bytes must be free behind the volume when it is placed. They are not reserved.
	Headroom int64
	// Pieces are the GUIDs of the further pieces that the volume may have, in their order. Request.MaxPieces says how
	// many it may have when it is placed.
	Pieces []string
	// Persistent is true for a volume that outlives a pod and that several pods may share. Another pod may have placed
	// it already.
	Persistent bool
}

// WithHeadroom is the request for the volume together with the headroom behind it.
func (w *VolumeRequest) WithHeadroom() placement.Request {
	r := w.Request
	if r.Size = placement.AddCapped(r.Size, w.Headroom); r.Size == math.MaxInt64 {
		// No disk is that large. Placement returns the error.
		r.Size -= r.Size % placement.Alignment
	}
	return r
}

// Reserve plans the volumes on the node again and records the result for the holder, one record for each volume, in
// their order. Behind them are the records of further pieces, volume by volume. It may be repeated, for the same node
// or another: the last call counts. What the holder itself has there does not block it, nor what any holder has there
// in doubt for these volumes.
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
	// further are the records of the further pieces, by the index of their volume.
	further map[int][]Record
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
			r.setFurther(i, l.furtherOf(where, volumes[i].Pieces, r.earlier))
		}
	}
	r.own = make(map[string]struct{}, len(r.planned))
	for _, at := range r.planned {
		r.own[volumes[at].Partition] = struct{}{}
		for _, piece := range volumes[at].Pieces {
			r.own[piece] = struct{}{}
		}
		r.requests = append(r.requests, volumes[at].WithHeadroom())
	}
	if (r.earlier == nil || r.earlier.node != nodeName) && !l.inDoubt(nodeName, r.own) {
		r.own = nil
	}
	return r, nil
}

// setFurther sets the records of a volume's further pieces.
func (r *reservation) setFurther(volume int, pieces []Record) {
	if len(pieces) == 0 {
		return
	}
	if r.further == nil {
		r.further = map[int][]Record{}
	}
	r.further[volume] = pieces
}

// all returns the records of the volumes, and behind them those of their further pieces.
func (r *reservation) all() []Record {
	all := slices.Clone(r.records)
	for _, volume := range slices.Sorted(maps.Keys(r.further)) {
		all = append(all, r.further[volume]...)
	}
	return all
}

// reassigned reports whether the place of a volume without a record is recorded for another volume, which the node has
// not published yet. The volume has ended then, and the node publishes an earlier state.
func (s *Snapshot) reassigned(r Record) bool {
	return slices.ContainsFunc(s.unpublished, func(other Record) bool {
		return other.Partition != r.Partition && other.Disk == r.Disk && other.Extent.Overlaps(r.Extent)
	})
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
	if now.snapshot != r.snapshot || now.earlier != r.earlier || !slices.Equal(now.planned, r.planned) || !slices.Equal(now.all(), r.all()) || len(now.own) != len(r.own) {
		return nil, nil
	}
	for i, at := range r.planned {
		pieces := recordsOf(&volumes[at], &plan[i])
		r.records[at] = pieces[0]
		r.setFurther(at, pieces[1:])
	}
	all := r.all()
	l.setHolder(&holder{key: r.key, node: r.nodeName, source: assumed, records: all})
	return slices.Clone(all), nil
}

// recordsOf are the records of a volume's pieces, without the headroom that it was planned with.
func recordsOf(v *VolumeRequest, place *placement.Assignment) []Record {
	first, missing := place.Extent, v.Request.Size
	records := []Record{{Partition: v.Partition, Disk: place.Disk, Extent: extent.New(first.Start, min(first.Len(), missing))}}
	missing -= records[0].Extent.Len()
	for i, e := range place.Further {
		if missing == 0 {
			break
		}
		length := min(e.Len(), missing)
		records = append(records, Record{Partition: v.Pieces[i], Disk: place.Disk, Extent: extent.New(e.Start, length)})
		missing -= length
	}
	return records
}

// Records returns the node and the records of a pod, without those in doubt. The node is empty if there are none.
func (l *Ledger) Records(uid string) (nodeName string, records []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[uid]; h != nil {
		return h.node, slices.Clone(h.records)
	}
	return "", nil
}

// Share adds another holder to a volume that has a place. The place stays held when the first holder gives it up, until
// Forget of the other holder, or until it is in doubt and settled. Share returns what Where does.
//
// pieces are the GUIDs of the further pieces that the volume may have. records are those of its pieces.
func (l *Ledger) Share(partition string, pieces []string, with string) (nodeName string, records []Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	nodeName, first, ok := l.where(partition, nil)
	if !ok {
		return "", nil, false
	}
	records = append([]Record{first}, l.furtherOf(nodeName, pieces, nil)...)
	l.setHolder(&holder{key: with, node: nodeName, source: assumed, records: records})
	return nodeName, slices.Clone(records), true
}

// Doubt says that a binding of the pod failed, and that it may have been done. What was assumed is then held until the
// pod is observed as bound or gone, whatever else is reserved for it in between. The pod's next try may go to another
// node while it is bound to this one.
func (l *Ledger) Doubt(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[uid]
	if h == nil || h.source != assumed {
		return
	}
	n := l.node(h.node)
	for _, r := range h.records {
		// A pod that is tried again usually gets the same place.
		if !slices.Contains(n.doubts[uid], r) {
			n.doubts[uid] = append(n.doubts[uid], r)
		}
	}
	if l.doubts[uid] == nil {
		l.doubts[uid] = map[string]struct{}{}
	}
	l.doubts[uid][h.node] = struct{}{}
	l.removeHolder(uid)
}

// Holds reports whether anything is held for the pod: assumed, in doubt or observed.
func (l *Ledger) Holds(uid string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holders[uid] != nil || l.doubts[uid] != nil
}

// InDoubt reports whether a record of the partition is in doubt: of the pod whose volume it is, or of a claim whose
// volume may have been made. What an earlier try has left must not block a new try to place the volume.
func (l *Ledger) InDoubt(partition string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := map[string]struct{}{partition: {}}
	for _, nodes := range l.doubts {
		for name := range nodes {
			if l.inDoubt(name, own) {
				return true
			}
		}
	}
	return false
}

// inDoubt reports whether one of the partitions is in doubt on the node. The lock is held.
func (l *Ledger) inDoubt(nodeName string, partitions map[string]struct{}) bool {
	n, ok := l.nodes.Load(nodeName)
	if !ok {
		return false
	}
	for _, records := range n.(*node).doubts {
		for _, r := range records {
			if _, ok := partitions[r.Partition]; ok {
				return true
			}
		}
	}
	return false
}

// Forget drops what was assumed for the pod. It may be called twice, or without a Reserve. What is observed or in doubt
// stays.
func (l *Ledger) Forget(uid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[uid]; h != nil && h.source == assumed {
		l.removeHolder(uid)
	}
}

// Release drops what is assumed or in doubt for a key that is not a pod's.
func (l *Ledger) Release(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holders[key]; h != nil && h.source == assumed {
		l.removeHolder(key)
	}
	l.settle(key)
}

// Settle drops what is in doubt for a key: the write was not done, or its record is known. What is assumed stays.
func (l *Ledger) Settle(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(key)
}
