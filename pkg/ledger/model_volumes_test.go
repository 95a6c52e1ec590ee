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
	start, end int // MiB, as recorded
	gone       bool
}

func (v *volume) record() Record { return Record{partition(v.id), diskID, mib(v.start, v.end)} }

func (w *world) queueVolumeEvent(v *volume) {
	w.queueEvent(func() {
		if v.gone {
			w.ledger.DeleteVolume(v.uid)
		} else {
			w.ledger.SetVolume(v.uid, nodeName, v.record())
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
	v := &volume{id: id, uid: fmt.Sprint("pv", len(w.volumes)), start: start, end: start + size}
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
	switch w.rng.IntN(4) {
	case 0:
		w.realizeVolume(v, start, length)
	case 1:
		w.grow(t, v)
	default:
		w.end(v, length)
	}
}

// realizeVolume makes the volume on the disk, or grows it to its recorded length.
func (w *world) realizeVolume(v *volume, start, length int) {
	if v.gone || w.wiping[v.id] || length >= v.end-v.start {
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
		for at := range w.disk {
			if w.disk[at] == v.id {
				w.disk[at] = 0
			}
		}
		delete(w.wiping, v.id)
		w.publish()
	}
}
