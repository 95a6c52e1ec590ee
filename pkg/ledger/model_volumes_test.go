package ledger

import (
	"fmt"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// volume is a PersistentVolume of the model. A claim's volume can be made again, with the
// same partition, after the first was deleted.
type volume struct {
	id         int // negative: what is written on the disk
	uid        string
	start, end int // MiB, where it is, or will be
	gone       bool

	// version of the object in the API. recorded is where its attributes have it, created its length there.
	version           uint64
	recorded, created int
	// move is where the API has it moved; nil if nowhere. planned is a move whose write is under way.
	move, planned *Move
	// pieces are the further pieces in the API. plannedPieces are those whose write is under way, with the first one.
	pieces, plannedPieces []Record
}

// record is what RecordOf of package diskcapacity returns.
func (v *volume) record() Record {
	length := v.end - v.start
	if v.move != nil {
		length = v.created
	}
	return Record{partition(v.id), diskID, mib(v.recorded, v.recorded+length)}
}

// length is how many MiB all pieces have, in the API.
func (v *volume) length() int {
	length := v.end - v.start
	for _, r := range v.pieces {
		length += int(r.Extent.Len() >> 20)
	}
	return length
}

// pieceOf is the id of a further piece of a claim's volume, or of its copy.
func pieceOf(id, n int) int { return id - 1000*n }

const maxModelPieces = 4

// copyOf is the id of the copy of a claim's volume.
func copyOf(id int) int { return id - 100 }

func (w *world) queueVolumeEvent(v *volume) {
	w.queueEvent(func() {
		if v.gone {
			w.ledger.DeleteVolume(v.uid)
		} else {
			w.ledger.SetVolume(v.uid, nodeName, Version{Number: v.version, First: v.record(), Pieces: v.pieces, Move: v.move})
		}
	})
}

// alive is the PersistentVolume of that partition, if there is one.
func (w *world) alive(id int) *volume {
	for _, v := range w.volumes {
		if v.id == id && !v.gone {
			return v
		}
	}
	return nil
}

func (w *world) onDisk(id int) (start, length int) {
	for at, owner := range w.disk {
		if owner == id {
			if length == 0 {
				start = at
			}
			length++
		}
	}
	return start, length
}

// claim places the volume of a new claim, or of one whose volume was deleted.
func (w *world) claim(t *testing.T) {
	id := -1 - w.rng.IntN(8)
	if _, length := w.onDisk(id); w.alive(id) != nil || length > 0 && !w.wiping[id] {
		return
	}
	// The node wipes a volume's copy before it ends the volume.
	if _, copied := w.onDisk(copyOf(id)); copied > 0 {
		return
	}
	size, room := 1+w.rng.IntN(4), w.rng.IntN(2)
	holder := fmt.Sprint("holder", len(w.volumes))
	records, err := w.ledger.Reserve(holder, nodeName, []VolumeRequest{{
		Partition: partition(id), Persistent: true, Headroom: int64(room) << 20,
		Request: placement.Request{Class: class, Size: int64(size) << 20},
	}})
	if err != nil {
		return
	}
	// The ledger may not know yet that an earlier volume has ended, and keep its place. Another
	// volume may have that place by then only if it is no longer held.
	if records[0].Extent.Len() != int64(size)<<20 || w.wasMoved(id, records[0].Extent) {
		w.ledger.Forget(holder)
		return
	}
	start := w.checkNotTaken(t, records[0].Extent, fmt.Sprint("volume ", id))
	v := &volume{id: id, uid: fmt.Sprint("pv", len(w.volumes)), start: start, end: start + size, version: 1, recorded: start, created: size}
	switch outcome := w.rng.IntN(10); {
	case outcome < 7: // made
		w.volumes = append(w.volumes, v)
		w.queueVolumeEvent(v)
		if w.rng.IntN(2) == 0 {
			v.gone = true // and deleted at once, before its maker says so
			w.queueVolumeEvent(v)
			if w.rng.IntN(2) == 0 {
				w.settle()
			}
		}
		w.ledger.AddVolume(v.uid, "name", nodeName, v.record(), nil)
		w.ledger.Release(holder)
		if v.gone {
			w.queueVolumeEvent(v)
		}
	case outcome < 8:
		w.ledger.Forget(holder)
	default: // it is not known, later it is
		w.volumes = append(w.volumes, v)
		w.ledger.Doubt(holder)
		w.queueVolumeEvent(v)
		w.queueEvent(func() {
			// A caller that settles the doubt has read the volume.
			if !v.gone {
				w.ledger.AddVolume(v.uid, "name", nodeName, v.record(), nil)
			}
			w.ledger.Release(holder)
		})
	}
}

// wasMoved reports whether an earlier volume of that partition was put there first, and moved.
func (w *world) wasMoved(id int, e extent.Extent) bool {
	return slices.ContainsFunc(w.volumes, func(v *volume) bool {
		return v.id == id && v.start != v.recorded && mib(v.recorded, v.recorded+v.created) == e
	})
}

// changeVolume makes a random change of a random volume.
func (w *world) changeVolume(t *testing.T) {
	if len(w.volumes) == 0 {
		return
	}
	v, what := w.volumes[w.rng.IntN(len(w.volumes))], w.rng.IntN(9)
	if w.pieces {
		// Few volumes end, and they are changed once more then, to be wiped.
		if alive := w.alive(-1 - w.rng.IntN(8)); alive != nil {
			v = alive
		}
		what = []int{0, 0, 0, 2, 3, 3, 4, 4, 4, 4, 6, 8, 8, 8}[w.rng.IntN(14)]
	}
	start, length := w.onDisk(v.id)
	switch what {
	case 0, 1:
		w.realizeVolume(v, start, length)
		w.realizePieces(v)
	case 8:
		w.planPieces(t, v)
	case 2:
		w.grow(t, v)
	case 3:
		w.planMove(t, v)
	case 4, 5:
		w.moveOn(v, start, length)
	default:
		w.end(v, length)
	}
}

// realizeVolume makes the volume on the disk, or grows it to its recorded length.
func (w *world) realizeVolume(v *volume, start, length int) {
	if v.gone || w.wiping[v.id] || length >= v.end-v.start || v.move != nil {
		return
	}
	if length == 0 {
		start = v.start
	}
	for at := start + length; at < start+v.end-v.start; at++ {
		if w.disk[at] != 0 {
			return
		}
	}
	for at := start; at < start+v.end-v.start; at++ {
		w.disk[at] = v.id
	}
	w.publish()
}

// realizePieces makes the next further piece on the disk, or has the last one grow to its recorded length.
func (w *world) realizePieces(v *volume) {
	if _, length := w.onDisk(v.id); v.gone || w.wiping[v.id] || v.move != nil || length == 0 || length < v.end-v.start {
		return
	}
	for i, r := range v.pieces {
		id, from, to := pieceOf(v.id, i+1), int(r.Extent.Start>>20)-1, int(r.Extent.End>>20)-1
		if _, length := w.onDisk(id); length == to-from {
			continue
		}
		for at := from; at < to; at++ {
			if w.disk[at] != 0 && w.disk[at] != id {
				return
			}
		}
		for at := from; at < to; at++ {
			w.disk[at] = id
		}
		w.publish()
		return
	}
}

// planPieces requests a larger size in pieces. If it is granted, it is written later, or not.
func (w *world) planPieces(t *testing.T, v *volume) {
	if v.gone || v.move != nil || v.planned != nil || v.plannedPieces != nil {
		return
	}
	g := Growth{Version: v.version, First: v.record(), Pieces: v.pieces, Length: int64(v.length()+1+w.rng.IntN(5)) << 20}
	for n := range w.rng.IntN(maxModelPieces) {
		g.Partitions = append(g.Partitions, partition(pieceOf(v.id, n+1)))
	}
	pieces, possible, err := w.ledger.PlanPieces(v.uid, g)
	if err != nil || possible < g.Length {
		return
	}
	first := g.Length
	for i, r := range pieces {
		first -= r.Extent.Len()
		if i < len(v.pieces) {
			if r.Extent.Start != v.pieces[i].Extent.Start || r.Extent.Len() < v.pieces[i].Extent.Len() || i < len(v.pieces)-1 && r != v.pieces[i] {
				t.Fatalf("piece %d of volume %d becomes %v, was %v", i+1, v.id, r, v.pieces[i])
			}
			r.Extent.Start = v.pieces[i].Extent.End
		}
		if !r.Extent.Empty() {
			w.checkNotTaken(t, r.Extent, fmt.Sprintf("piece %d of volume %d", i+1, v.id))
		}
	}
	end := v.start + int(first>>20)
	switch {
	case possible != g.Length || len(pieces) < len(v.pieces) || len(pieces) > max(len(g.Partitions), len(v.pieces)):
		t.Fatalf("volume %d of %v and %v gets the pieces %v for %d bytes", v.id, g.First, g.Pieces, pieces, g.Length)
	case end < v.end || end > v.end && len(v.pieces) > 0:
		t.Fatalf("the first piece of volume %d ends at %d, was %d", v.id, end, v.end)
	case end > v.end:
		w.checkNotTaken(t, mib(v.end, end), fmt.Sprint("the first piece of volume ", v.id))
	}
	v.plannedPieces = append([]Record{{Partition: partition(v.id), Disk: diskID, Extent: mib(v.start, end)}}, pieces...)
	version, outcome := v.version, w.rng.IntN(4)
	w.queueEvent(func() {
		if v.plannedPieces == nil {
			return
		}
		v.plannedPieces = nil
		switch {
		case v.gone, v.version != version, outcome == 0:
			w.ledger.WithdrawPieces(v.uid, version)
		case outcome == 1:
			// It was not done, and the next write of the object rules it out.
			v.version++
			w.queueVolumeEvent(v)
		default:
			v.version++
			v.end, v.pieces = end, pieces
			if len(pieces) > 1 {
				w.sawMany++
			}
			w.queueVolumeEvent(v)
		}
	})
	w.queueVolumeEvent(v)
}

// grow requests a larger size. If it is granted, it raises the record or fails to.
func (w *world) grow(t *testing.T, v *volume) {
	if v.gone {
		return
	}
	before := v.end
	length := v.end - v.start + w.rng.IntN(3)
	granted, _ := w.ledger.Grow(v.uid, int64(length)<<20)
	if !granted {
		return
	}
	v.gone = true // not in its own way
	w.checkNotTaken(t, mib(v.start, v.start+length), fmt.Sprint("growing volume ", v.id))
	v.gone = false
	if w.rng.IntN(4) == 0 {
		w.ledger.WithdrawGrowth(v.uid)
		v.end = before
		return
	}
	v.end = v.start + length
	v.version++
	w.queueVolumeEvent(v)
}

// end deletes a volume: the object before the bytes are wiped, or after.
func (w *world) end(v *volume, length int) {
	switch {
	case !v.gone && length > 0 && !w.wiping[v.id]:
		for n := range maxModelPieces {
			w.wiping[pieceOf(v.id, n)] = true
		}
		w.publish()
		if w.rng.IntN(2) == 0 {
			return
		}
		fallthrough
	case !v.gone:
		if length > 0 && !w.wiping[v.id] {
			return
		}
		v.gone = true
		w.queueVolumeEvent(v)
	case w.wiping[v.id]:
		w.drop(v.id)
		w.publish()
	}
}

// planMove requests a larger size elsewhere. If it is granted, it is written later, or not.
func (w *world) planMove(t *testing.T, v *volume) {
	if v.gone || v.move != nil || v.planned != nil || v.plannedPieces != nil {
		return
	}
	length := v.length() + w.rng.IntN(4)
	m, ok, _ := w.ledger.PlanMove(v.uid, MoveRequest{Copy: partition(copyOf(v.id)), Version: v.version, Length: int64(length) << 20, Class: class})
	if !ok {
		return
	}
	if m.Extent.Len() != int64(length)<<20 {
		t.Fatalf("a move of volume %d to %d MiB is planned as %v", v.id, length, m.Extent)
	}
	w.checkNotTaken(t, m.Extent, fmt.Sprint("the move of volume ", v.id))
	v.planned = &m
	version, outcome := v.version, w.rng.IntN(4)
	w.queueEvent(func() {
		if v.planned != &m {
			return
		}
		v.planned = nil
		switch {
		case v.gone:
			// The write was refused, and the end of the volume ends the move.
			w.ledger.WithdrawMove(v.uid, version)
		case v.version != version || outcome == 0:
			w.ledger.WithdrawMove(v.uid, version)
		case outcome == 1:
			// It was not done, and the next write of the object rules it out.
			v.version++
			w.queueVolumeEvent(v)
		default:
			v.version++
			v.move = &m
			w.queueVolumeEvent(v)
		}
	})
	w.queueVolumeEvent(v)
}

// moveOn does the next step of a move: on the node, or in the API when the ledger shows that the node has done it.
func (w *world) moveOn(v *volume, start, length int) {
	c := copyOf(v.id)
	_, copied := w.onDisk(c)
	switch {
	case copied > 0 && (w.wiping[c] || v.gone || v.move == nil):
		w.drop(c)
		w.publish()
	case v.gone || v.move == nil || w.wiping[v.id] || length == 0:
	case w.isAt(v, start):
		if w.ledger.Snapshot(nodeName).IsMoved(partition(v.id), *v.move) {
			if len(v.pieces) > 0 {
				w.sawMoved++
			}
			v.move, v.pieces = nil, nil
			v.version++
			w.queueVolumeEvent(v)
		}
	case copied == 0:
		from, to := w.target(v)
		for at := from; at < to; at++ {
			if w.disk[at] != 0 {
				return
			}
		}
		for at := from; at < to; at++ {
			w.disk[at] = c
		}
		w.publish()
	default:
		v.start, v.end = w.target(v)
		for at, owner := range w.disk {
			switch owner {
			case v.id:
				w.disk[at] = c
			case c:
				w.disk[at] = v.id
			}
			for n := 1; n < maxModelPieces; n++ {
				if owner == pieceOf(v.id, n) {
					w.disk[at] = pieceOf(c, n)
				}
			}
		}
		for n := range maxModelPieces {
			w.wiping[pieceOf(c, n)] = true
		}
		w.publish()
	}
}

// target is where the API has the volume moved.
func (w *world) target(v *volume) (from, to int) {
	return int(v.move.Extent.Start>>20) - 1, int(v.move.Extent.End>>20) - 1
}

func (w *world) isAt(v *volume, start int) bool {
	from, _ := w.target(v)
	return start == from
}

// drop frees what a volume that is being wiped has on the disk, or a copy.
func (w *world) drop(id int) {
	for n := range maxModelPieces {
		for at := range w.disk {
			if w.disk[at] == pieceOf(id, n) {
				w.disk[at] = 0
			}
		}
		delete(w.wiping, pieceOf(id, n))
	}
}
