package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// memMove is a disk in memory with volume a, which is moved, and volume b, which is not.
type memMove struct {
	l layout
	m *memDisk
	o MoveOptions
	// from is where volume a was made, and data is what it holds. slots are what is kept of a and b.
	from  extent.Extent
	data  []byte
	slots map[string]slot
	// window is the length of the copy's windows.
	window int64
	// lies is set if the device's method zeroes nothing.
	lies bool

	zeroed []extent.Extent // by the method
}

// newMemMove makes the disk. Volume a has few sectors that are not zero, and so has the space that it moves to.
func newMemMove(t *testing.T, l layout) *memMove {
	t.Helper()
	m, _ := newFormattedDisk(t, l)
	mm := &memMove{
		l: l, m: m, o: MoveOptions{Partition: guidA, Copy: copyOf(guidA), Extent: extentMiB(20, 6)}, from: extentMiB(2, 5), window: 2 * units.MiB,
		slots: map[string]slot{guidA: {note: "of a", wipe: WipeSettings{WipeOverwrite, 1 << 30}}, guidB: {note: "of b", wipe: WipeSettings{WipeZero, 5}}},
	}
	d := mm.open(t, m)
	for _, step := range []step{reserve(guidA, 2, 5), reserve(guidB, 8, 2), setPhase(guidA, Formatted)} {
		if err := step.do(t, d.store); err != nil {
			t.Fatal(err)
		}
	}
	for guid, s := range mm.slots {
		e, _ := d.store.table.volume(guid)
		if err := d.writeSlotProven(e, s); err != nil {
			t.Fatal(err)
		}
	}
	// The third MiB is zero. The fourth MiB of the target is zero as well, and the others are not.
	for _, at := range []int64{0, units.MiB - 512, units.MiB, 3*units.MiB + 4096, 5*units.MiB - 4096} {
		m.write(mm.from.Start+at, bytes.Repeat([]byte{byte(at>>20) + 1}, int(l.sector)))
	}
	mm.data = make([]byte, mm.from.Len())
	mm.mustRead(t, m, mm.data, mm.from.Start)
	for _, at := range []int64{8192, 2*units.MiB + 4096, 5 * units.MiB, 6*units.MiB - 4096} {
		m.write(mm.o.Extent.Start+at, bytes.Repeat([]byte("junk"), 1024))
	}
	m.log = nil
	return mm
}

func (mm *memMove) mustRead(t *testing.T, m *memDisk, b []byte, off int64) {
	t.Helper()
	if _, err := m.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// open opens the disk as Open does, but attaches nothing.
func (mm *memMove) open(t *testing.T, m *memDisk) *Disk {
	t.Helper()
	s, _, err := m.openTable(t, mm.l, false)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{device: &blockDevice{layout: mm.l, path: "a disk in memory"}, store: s, slots: map[string]slot{}, unflushed: map[string]bool{}}
	if d.slots, err = readSlots(m, s.table); err != nil {
		t.Fatal(err)
	}
	return d
}

// run is what Move does, without a kernel.
func (mm *memMove) run(ctx context.Context, t *testing.T, d *Disk, m *memDisk) error {
	t.Helper()
	e, err := d.store.table.movable(guidA)
	if err != nil || e.extent == mm.o.Extent {
		return err
	}
	target, resumed, tailIsZero, err := d.ensureTarget(ctx, e, mm.o)
	if err != nil {
		return err
	}
	job := mm.job(m, e.extent, target.extent, resumed)
	job.rewriteAll = d.unflushed[mm.o.Copy]
	if tailIsZero {
		t.Error("the end of the target counts as zero")
	}
	if err := job.run(ctx); err != nil {
		d.unflushed[mm.o.Copy] = job.flushFailed
		return err
	}
	if last := m.log[len(m.log)-1]; last.data != nil {
		t.Error("the copy ends without a flush")
	}
	_, err = d.commitMove(ctx, mm.o)
	return err
}

// job copies in memory.
func (mm *memMove) job(m *memDisk, from, to extent.Extent, resumed bool) *copyJob {
	job := newCopyJob(copySide{name: "source", device: m, path: "memory", extent: from}, copySide{name: "target", device: m, path: "memory", extent: to}, mm.window)
	job.compareFirst = resumed
	job.zero = func(_ context.Context, part extent.Extent) error {
		mm.zeroed = append(mm.zeroed, part)
		if mm.lies {
			return nil
		}
		_, err := m.WriteAt(make([]byte, part.Len()), part.Start)
		return errors.Join(err, m.Sync())
	}
	job.zeroTail = func(ctx context.Context, tail extent.Extent, _ func(int64)) error {
		if err := job.zero(ctx, tail); err != nil {
			return err
		}
		b := make([]byte, tail.Len())
		if _, err := m.ReadAt(b, tail.Start); err != nil || !allZero(b) {
			return errors.Join(err, errors.New("the end does not read as zeros"))
		}
		return nil
	}
	return job
}

// check asserts that the disk has volume a once, with its content and slot, and a place of the move at most. It returns
// where volume a is. With wipe, the other place must be known to be wiped as the volume is.
func (mm *memMove) check(t *testing.T, what string, d *Disk, m *memDisk, wipe bool) extent.Extent {
	t.Helper()
	var a, c []entry
	for _, e := range d.store.table.entries {
		switch e.guid {
		case guidA:
			a = append(a, e)
		case mm.o.Copy:
			c = append(c, e)
		}
	}
	entries := describeEntries(d.store.table.entries)
	if len(a) != 1 || a[0].phase() != Formatted || a[0].name != "default/pod" || a[0].attributes != AttributeEphemeral {
		t.Fatalf("%s: volume a is there %d times: %v", what, len(a), entries)
	}
	if a[0].extent != mm.from && a[0].extent != mm.o.Extent {
		t.Fatalf("%s: volume a is elsewhere: %v", what, entries)
	}
	want := entry{index: -1}
	if len(c) > 0 {
		want = c[0]
		want.typeGUID, want.extent = TypeCopying, mm.o.Extent
	}
	if a[0].extent == mm.o.Extent {
		want.typeGUID, want.extent = TypeWiping, mm.from
	}
	if len(c) > 1 || len(c) == 1 && c[0] != want || len(c) == 0 && a[0].extent == mm.o.Extent {
		t.Fatalf("%s: the other place of the move is %+v, it should be %+v", what, c, want)
	}
	got := make([]byte, a[0].extent.Len())
	mm.mustRead(t, m, got, a[0].extent.Start)
	if !bytes.Equal(got[:len(mm.data)], mm.data) || !allZero(got[len(mm.data):]) {
		t.Fatalf("%s: volume a at %v does not hold its content", what, a[0].extent)
	}
	for guid, s := range mm.slots {
		if d.slots[guid] != s {
			t.Fatalf("%s: of %s is kept %+v, it should be %+v", what, guid, d.slots[guid], s)
		}
	}
	if kept := d.slots[mm.o.Copy]; len(c) == 1 && wipe && kept != (slot{wipe: mm.slots[guidA].wipe}) {
		t.Fatalf("%s: of the other place %+v is kept", what, kept)
	}
	return a[0].extent
}

// TestPowerCutsInMove cuts the power at every write of a move, of one that is resumed, and of one that is given up. It
// asserts that volume a is there once, with its content. The move can be resumed, the first change
// after the recovery loses nothing, and the old place is wiped in the same way as the volume.
func TestPowerCutsInMove(t *testing.T) {
	c := powerCutTest{random: rand.New(rand.NewPCG(15, 16))}
	places := map[extent.Extent]int{}
	for _, l := range crashLayouts(t) {
		for _, name := range []string{"a move", "a move resumed", "a move that is given up"} {
			mm := newMemMove(t, l)
			ctx := withoutLogs(t)
			if name != "a move" {
				mm.cutInMiddle(t)
				mm.changeContent(t)
			}
			before := mm.m.clone()
			d := mm.open(t, mm.m)
			mm.m.log = nil
			acknowledged := 1 << 30
			if name == "a move that is given up" {
				for _, step := range []step{setPhase(mm.o.Copy, Wiping), removeVolume(mm.o.Copy)} {
					if err := step.do(t, d.store); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				if err := mm.run(ctx, t, d, mm.m); err != nil {
					t.Fatal(err)
				}
				if at := mm.check(t, name, d, mm.m, true); at != mm.o.Extent {
					t.Fatalf("volume a is at %v", at)
				}
				acknowledged = len(mm.m.log)
			}
			powerCuts(before, mm.m.log, c.random, func(cut *memDisk, written int) {
				c.states++
				d := mm.open(t, cut)
				if name == "a move that is given up" {
					if e, err := d.store.table.volume(guidA); err != nil || e.extent != mm.from {
						t.Fatalf("%s: %+v, %v", name, e, err)
					}
					return
				}
				at := mm.check(t, name, d, cut, true)
				places[at]++
				if written >= acknowledged && at != mm.o.Extent {
					t.Fatalf("%s: it was acknowledged, and volume a is at %v", name, at)
				}
				if c.random.IntN(20) == 0 {
					c.changeAfterRecovery(t, cut.clone(), l, name)
				}
				if c.random.IntN(4) == 0 {
					if err := mm.run(ctx, t, d, cut); err != nil {
						t.Fatalf("%s, cut, and resumed: %v", name, err)
					}
					if at := mm.check(t, name, mm.open(t, cut), cut, true); at != mm.o.Extent {
						t.Fatalf("%s, cut, and resumed: volume a is at %v", name, at)
					}
				}
			})
		}
	}
	t.Logf("%d states, volume a was at %v", c.states, places)
	if len(places) != 2 || c.states < 1000 {
		t.Errorf("%d states, volume a was at %v", c.states, places)
	}
}

// cutInMiddle ends a move after its first windows.
func (mm *memMove) cutInMiddle(t *testing.T) {
	t.Helper()
	d := mm.open(t, mm.m)
	e, err := d.store.table.movable(guidA)
	if err != nil {
		t.Fatal(err)
	}
	target, _, _, err := d.ensureTarget(withoutLogs(t), e, mm.o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	job := mm.job(mm.m, e.extent, target.extent, false)
	job.onProgress = func(done int64) {
		if done >= 2*mm.window {
			cancel()
		}
	}
	if err := job.run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a copy that is cut: %v", err)
	}
}

// changeContent changes volume a: a sector gets other bytes, one becomes zero, and one does no longer.
func (mm *memMove) changeContent(t *testing.T) {
	t.Helper()
	for at, b := range map[int64]byte{units.MiB: 0, 512 << 10: 7, 2*units.MiB + 8192: 9} {
		mm.m.write(mm.from.Start+at, bytes.Repeat([]byte{b}, int(mm.l.sector)))
	}
	mm.mustRead(t, mm.m, mm.data, mm.from.Start)
}

// TestMoveFaults makes every single operation of a move fail once, fail for good, or be dropped. It asserts that the
// volume keeps its content and slot, in its old place or in the new one. Without an error it is in the new place. The
// next move, of the same agent or of another, ends the work.
func TestMoveFaults(t *testing.T) {
	for _, fault := range []struct {
		name    string
		dropped bool
		fails   func(n, at int) bool
	}{
		{"once", false, func(n, at int) bool { return n == at }},
		{"from then on", false, func(n, at int) bool { return n >= at }},
		{"dropped", true, func(n, at int) bool { return n == at }},
		{"dropped from then on", true, func(n, at int) bool { return n >= at }},
	} {
		outcomes := map[string]int{}
		for at, reached := 0, true; reached; at++ {
			reached = false
			for _, l := range crashLayouts(t) {
				mm := newMemMove(t, l)
				if at%3 == 0 {
					mm.cutInMiddle(t)
					mm.changeContent(t)
				}
				ctx := withoutLogs(t)
				d := mm.open(t, mm.m)
				mm.m.operations, mm.m.fault = 0, func(n int, _ string) (error, bool) {
					if !fault.fails(n, at) {
						return nil, false
					}
					reached = true
					if fault.dropped {
						return nil, true
					}
					return errInjected, false
				}
				err := mm.run(ctx, t, d, mm.m)
				mm.m.fault = nil
				switch {
				case err == nil:
					outcomes["moved"]++
					mm.check(t, fault.name, d, mm.m, false)
				case errors.Is(err, ErrOutOfService):
					outcomes["out of service"]++
				default:
					outcomes["failed"]++
					// The agent goes on with what it knows.
					mm.check(t, fault.name, d, mm.m, false)
				}
				now := mm.open(t, mm.m)
				place := mm.check(t, fault.name, now, mm.m, false)
				if err == nil && place != mm.o.Extent {
					t.Fatalf("%s at %d: it is not moved", fault.name, at)
				}
				if !errors.Is(err, ErrOutOfService) && at%2 == 0 {
					now = d
				}
				if err := mm.run(ctx, t, now, mm.m); err != nil {
					t.Fatalf("%s at %d, then: %v", fault.name, at, err)
				}
				if place := mm.check(t, fault.name, mm.open(t, mm.m), mm.m, false); place != mm.o.Extent {
					t.Fatalf("%s at %d, then: it is not moved", fault.name, at)
				}
			}
		}
		t.Logf("%s: %v", fault.name, outcomes)
		if outcomes["moved"] == 0 || outcomes["failed"]+outcomes["out of service"] == 0 {
			t.Errorf("%s: %v", fault.name, outcomes)
		}
	}
}

// TestCopyDetectsDroppedWrites asserts that a copy fails if a write of data is dropped. The error names the side and
// the place.
func TestCopyDetectsDroppedWrites(t *testing.T) {
	mm := newMemMove(t, crashLayouts(t)[0])
	for _, test := range []struct {
		name, want string
		fault      func(op string) (error, bool)
	}{
		{"a dropped write", "the target, [20971520,22020096) of memory, does not read back", func(op string) (error, bool) { return nil, op == "write" }},
		{"a write that fails", "writing the target, [20971520,22020096) of memory: injected", func(op string) (error, bool) {
			if op == "write" {
				return errInjected, false
			}
			return nil, false
		}},
		{"a read that fails", "reading the source, [2097152,3145728) of memory: injected", func(op string) (error, bool) {
			if op == "read" {
				return errInjected, false
			}
			return nil, false
		}},
		{"a flush that fails", "flushing the target, [20971520,27262976) of memory: injected", func(op string) (error, bool) {
			if op == "sync" {
				return errInjected, false
			}
			return nil, false
		}},
	} {
		job := mm.job(mm.m, mm.from, mm.o.Extent, false)
		job.window = job.window[:units.MiB] // without zeros
		mm.m.fault = func(_ int, op string) (error, bool) { return test.fault(op) }
		err := job.run(t.Context())
		mm.m.fault = nil
		if err == nil || len(err.Error()) < len(test.want) || err.Error()[:len(test.want)] != test.want {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
		if job.flushFailed != (test.name == "a flush that fails") {
			t.Errorf("%s: flushFailed is %t", test.name, job.flushFailed)
		}
	}
}

// TestCopyFlushesBeforeItReadsBack asserts that a flush follows the last write before the target is read back.
func TestCopyFlushesBeforeItReadsBack(t *testing.T) {
	mm := newMemMove(t, crashLayouts(t)[0])
	var operations []string
	mm.m.fault = func(_ int, op string) (error, bool) { operations = append(operations, op); return nil, false }
	job := mm.job(mm.m, mm.from, extent.New(mm.o.Extent.Start, mm.from.Len()), false)
	if err := job.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(operations); i++ {
		if operations[i-1] == "write" && operations[i] == "read" {
			t.Fatalf("operation %d of %v reads what was not flushed", i, operations)
		}
	}
}

// TestCopyOfZeros asserts that zeros are not written. Where the target has other bytes the method zeroes them, and only
// there. If the method does nothing, zeros are written.
func TestCopyOfZeros(t *testing.T) {
	for _, lies := range []bool{false, true} {
		mm := newMemMove(t, crashLayouts(t)[1])
		mm.lies = lies
		mm.data = slices.Concat(mm.data[:2*units.MiB], make([]byte, 3*units.MiB))
		mm.m.write(mm.from.Start, mm.data)
		job := mm.job(mm.m, mm.from, extent.New(mm.o.Extent.Start, mm.from.Len()), false)
		mm.m.log = nil
		if err := job.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []extent.Extent{extentMiB(22, 1)}; !slices.Equal(mm.zeroed, want) {
			t.Errorf("the method zeroed %v, want %v", mm.zeroed, want)
		}
		written := int64(0)
		for _, w := range mm.m.log {
			written += int64(len(w.data))
		}
		// Two MiB of data, and one that the method, or the copy, zeroes.
		if written != 3*units.MiB {
			t.Errorf("%d bytes were written", written)
		}
		got := make([]byte, len(mm.data))
		mm.mustRead(t, mm.m, got, mm.o.Extent.Start)
		if !bytes.Equal(got, mm.data) {
			t.Error("the copy is not what the source is")
		}
		// Once more: nothing is left to do.
		mm.m.log, mm.zeroed = nil, nil
		job = mm.job(mm.m, mm.from, extent.New(mm.o.Extent.Start, mm.from.Len()), true)
		if err := job.run(t.Context()); err != nil || len(mm.m.log) != 1 || mm.m.log[0].data != nil || len(mm.zeroed) > 0 {
			t.Errorf("once more: %v, %d writes, %v", err, len(mm.m.log), mm.zeroed)
		}
		// After a failed flush nothing that the target shows counts.
		job = mm.job(mm.m, mm.from, extent.New(mm.o.Extent.Start, mm.from.Len()), true)
		job.rewriteAll, mm.m.log = true, nil
		if err := job.run(t.Context()); err != nil || extent.NewSet(mm.zeroed...).Total() != 3*units.MiB {
			t.Errorf("after a failed flush: %v, zeroed %v", err, mm.zeroed)
		}
		written = 0
		for _, w := range mm.m.log {
			written += int64(len(w.data))
		}
		if want := map[bool]int64{false: 5, true: 2}[lies] * units.MiB; written != want {
			t.Errorf("after a failed flush %d bytes were written, want %d", written, want)
		}
	}
}
