package ledger

import (
	"fmt"
	"testing"

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
}

// record is what RecordOf of package diskcapacity returns.
func (v *volume) record() Record {
	length := v.end - v.start
	if v.move != nil {
		length = v.created
	}
	return Record{partition(v.id), diskID, mib(v.recorded, v.recorded+length)}
}

// copyOf is the id of the copy of a claim's volume.
func copyOf(id int) int { return id - 100 }

func (w *world) queueVolumeEvent(v *volume) {
	w.queueEvent(func() {
		if v.gone {
			w.ledger.DeleteVolume(v.uid)
		} else {
			w.ledger.SetVolume(v.uid, nodeName, v.record())
			w.ledger.SetMove(v.uid, nodeName, v.version, v.move)
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
	if records[0].Extent.Len() != int64(size)<<20 {
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
		w.ledger.AddVolume(v.uid, "name", nodeName, v.record())
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
				w.ledger.AddVolume(v.uid, "name", nodeName, v.record())
			}
			w.ledger.Release(holder)
		})
	}
}

// changeVolume makes a random change of a random volume.
func (w *world) changeVolume(t *testing.T) {
	if len(w.volumes) == 0 {
		return
	}
	v := w.volumes[w.rng.IntN(len(w.volumes))]
	start, length := w.onDisk(v.id)
	switch w.rng.IntN(8) {
	case 0, 1:
		w.realizeVolume(v, start, length)
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
		w.wiping[v.id] = true
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
		w.replace(v.id, 0)
		delete(w.wiping, v.id)
		w.publish()
	}
}

// planMove requests a larger size elsewhere. If it is granted, it is written later, or not.
func (w *world) planMove(t *testing.T, v *volume) {
	if v.gone || v.move != nil || v.planned != nil {
		return
	}
	length := v.end - v.start + w.rng.IntN(4)
	m, ok := w.ledger.PlanMove(v.uid, partition(copyOf(v.id)), v.version, int64(length)<<20)
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
			w.ledger.WithdrawMove(v.uid)
		case v.version != version || outcome == 0:
			w.ledger.WithdrawMove(v.uid)
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
		w.replace(c, 0)
		delete(w.wiping, c)
		w.publish()
	case v.gone || v.move == nil || w.wiping[v.id] || length == 0:
	case w.isAt(v, start):
		if w.ledger.Snapshot(nodeName).IsMoved(partition(v.id), *v.move) {
			v.move = nil
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
		}
		w.wiping[c] = true
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

// replace gives all that one owner has on the disk to another.
func (w *world) replace(owner, by int) {
	for at := range w.disk {
		if w.disk[at] == owner {
			w.disk[at] = by
		}
	}
}
