//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/vm/wire"
)

// burst makes and wipes volumes, each worker in its own slots, until the test stops it, a step fails or the power is
// cut. Every step is announced before it begins, and again when it is done. The second announcement is the
// acknowledgement, which must stay true after a power cut.
func (g *guest) burst(ctx context.Context, b wire.Burst, event func(any)) error {
	d, err := g.disk(b.Disk)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	g.mu.Lock()
	g.stop[b.Disk] = stop
	g.mu.Unlock()
	var workers sync.WaitGroup
	errs := make([]error, b.Workers)
	for w := range b.Workers {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(b.Seed, uint64(w)))
			for errs[w] == nil {
				select {
				case <-stop:
					return
				default:
				}
				slot := r.IntN(b.Slots/b.Workers)*b.Workers + w
				at := extent.New(b.From+int64(slot)*b.SlotBytes, b.SlotBytes)
				errs[w] = (&worker{d, r, event, b.Pieces}).step(ctx, at)
			}
		})
	}
	workers.Wait()
	return errors.Join(errs...)
}

type worker struct {
	d     *disk.Disk
	r     *rand.Rand
	event func(any)
	// pieces has volumes grow by pieces.
	pieces bool
}

// step takes the volume of a slot one step further, or makes one.
func (w *worker) step(ctx context.Context, slot extent.Extent) error {
	v, ok := w.inSlot(slot)
	switch {
	case !ok:
		v = disk.Volume{Partition: uuid.NewString(), Extent: extent.New(slot.Start, (4+w.r.Int64N(4))<<20)}
		if err := w.do(ctx, "create", v); err != nil {
			return err
		}
		fallthrough
	case v.Phase == disk.Reserved:
		if w.r.IntN(8) == 0 {
			return w.do(ctx, "wipe", v)
		}
		if err := w.do(ctx, "format", v); err != nil {
			return err
		}
		return w.do(ctx, "fill", v)
	case v.Phase == disk.Formatted && w.pieces && len(v.Pieces) < 2 && w.r.IntN(2) == 0:
		number := len(v.Pieces) + 1
		v.Pieces = append(v.Pieces, disk.Piece{Number: number, Extent: extent.New(slot.Start+wire.PieceOffset(number), 1<<20)})
		if err := w.do(ctx, "piece", v); err != nil {
			return err
		}
		return w.do(ctx, "more", v)
	case v.Phase == disk.Formatted && w.r.IntN(3) == 0 && w.lengthen(&v, slot):
		return w.do(ctx, "grow", v)
	}
	return w.do(ctx, "wipe", v)
}

// lengthen makes the last piece longer, if its part of the slot has room.
func (w *worker) lengthen(v *disk.Volume, slot extent.Extent) bool {
	last, room := &v.Extent, w.room(slot)
	if n := len(v.Pieces); n > 0 {
		last, room = &v.Pieces[n-1].Extent, 2<<20
	}
	if last.Len() >= room {
		return false
	}
	last.End += 1 << 20
	return true
}

// room is how much of the slot the first piece may use.
func (w *worker) room(slot extent.Extent) int64 {
	if w.pieces {
		return wire.PieceOffset(1)
	}
	return slot.Len()
}

// mounted calls do while the volume is mounted.
func (w *worker) mounted(ctx context.Context, partition string, do func() error) error {
	if err := mount(w.d, partition); err != nil {
		return err
	}
	return errors.Join(do(), unmount(ctx, partition), os.Remove(mountPoint(partition)))
}

// addPiece gives the volume its last piece. A volume that has several already gets it while it is mounted.
func (w *worker) addPiece(ctx context.Context, v disk.Volume) error {
	last := v.Pieces[len(v.Pieces)-1]
	add := func() error {
		_, err := w.d.AddPiece(ctx, v.Partition, last.Number, last.Extent)
		return err
	}
	if last.Number == 1 {
		return add()
	}
	return w.mounted(ctx, v.Partition, add)
}

func (w *worker) inSlot(slot extent.Extent) (disk.Volume, bool) {
	for _, v := range w.d.Snapshot().Volumes {
		if slot.Contains(v.Extent) {
			return v, true
		}
	}
	return disk.Volume{}, false
}

func (w *worker) do(ctx context.Context, do string, v disk.Volume) error {
	s := wire.Step{Do: do, Partition: v.Partition, Start: v.Extent.Start, Length: v.Length()}
	w.event(s)
	var err error
	switch do {
	case "create":
		_, err = w.d.Create(ctx, disk.CreateOptions{Partition: v.Partition, Name: "burst", Extent: v.Extent, Note: "burst " + v.Partition})
	case "format":
		err = formatted(ctx, w.d, v.Partition)
	case "fill":
		err = w.mounted(ctx, v.Partition, func() error { return fill(v.Partition) })
	case "grow":
		_, err = w.d.Grow(ctx, v.Partition, v.Length())
	case "piece":
		err = w.addPiece(ctx, v)
	case "more":
		err = w.mounted(ctx, v.Partition, func() error { return fillMore(ctx, w.d, v.Partition) })
	case "wipe":
		err = wipe(ctx, w.d, v.Partition)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", do, v.Partition, err)
	}
	s.Done = true
	w.event(s)
	return nil
}
