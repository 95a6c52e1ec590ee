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
				errs[w] = (&worker{d, r, event}).step(ctx, at)
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
	case v.Phase == disk.Formatted && v.Extent.Len() < slot.Len() && w.r.IntN(3) == 0:
		v.Extent.End += 1 << 20
		return w.do(ctx, "grow", v)
	}
	return w.do(ctx, "wipe", v)
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
	s := wire.Step{Do: do, Partition: v.Partition, Start: v.Extent.Start, Length: v.Extent.Len()}
	w.event(s)
	var err error
	switch do {
	case "create":
		_, err = w.d.Create(ctx, disk.CreateOptions{Partition: v.Partition, Name: "burst", Extent: v.Extent, Note: "burst " + v.Partition})
	case "format":
		err = formatted(ctx, w.d, v.Partition)
	case "fill":
		if err = mount(w.d, v.Partition); err == nil {
			err = errors.Join(fill(v.Partition), unmount(ctx, v.Partition), os.Remove(mountPoint(v.Partition)))
		}
	case "grow":
		_, err = w.d.Grow(ctx, v.Partition, v.Extent.Len())
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
