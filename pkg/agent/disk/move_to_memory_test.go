package disk

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// guidLeft is the GUID of the place that volume a leaves.
const guidLeft = "1ef70000-0000-4000-8000-000000000001"

// memPair is two disks in memory with one order of all their writes. Volume a moves from the first to the second.
type memPair struct {
	l     layout
	disks [2]*memDisk
	log   []pairWrite
	from  extent.Extent
	o     MoveToOptions
	// data are the chunks of the volume that are not zero, by their place in it.
	data map[int64][]byte
	kept slot
}

// pairWrite is a write to one of the disks, or a flush of it.
type pairWrite struct {
	disk int
	loggedWrite
}

// pairDisk is one disk of a pair. It logs into the pair.
type pairDisk struct {
	*memDisk
	pair *memPair
	is   int
}

func (d pairDisk) WriteAt(b []byte, off int64) (int, error) {
	before := len(d.log)
	n, err := d.memDisk.WriteAt(b, off)
	d.record(before)
	return n, err
}

func (d pairDisk) Sync() error {
	before := len(d.log)
	err := d.memDisk.Sync()
	d.record(before)
	return err
}

func (d pairDisk) record(before int) {
	for _, w := range d.log[before:] {
		d.pair.log = append(d.pair.log, pairWrite{d.is, w})
	}
}

// newMemPair makes two disks. The first has volume a, with data and zeros. The place on the second holds other bytes,
// and so does a volume beside it.
func newMemPair(t *testing.T, l layout) *memPair {
	t.Helper()
	p := &memPair{
		l: l, from: extentMiB(2, 3), kept: slot{note: "of a", wipe: WipeSettings{WipeOverwrite, 1 << 30}},
		o: MoveToOptions{Partition: guidA, Copy: copyOf(guidA), Left: guidLeft, Extent: extentMiB(20, 4)},
	}
	for i := range p.disks {
		p.disks[i], _ = newFormattedDisk(t, l)
	}
	source, target := p.open(t, 0), p.open(t, 1)
	for _, step := range []step{reserve(guidA, 2, 3), setPhase(guidA, Formatted), reserve(guidC, 8, 2)} {
		if err := step.do(t, source.store); err != nil {
			t.Fatal(err)
		}
	}
	if err := reserve(guidB, 2, 5).do(t, target.store); err != nil {
		t.Fatal(err)
	}
	e, _ := source.store.table.volume(guidA)
	if err := source.writeSlotProven(e, p.kept); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, units.MiB, 3*units.MiB - 4096} {
		p.disks[0].write(p.from.Start+at, bytes.Repeat([]byte{byte(at>>20) + 1}, int(l.sector)))
	}
	p.data = p.chunks(0, p.from)
	for _, at := range []int64{8192, units.MiB + 4096, 3 * units.MiB, 4*units.MiB - 4096} {
		p.disks[1].write(p.o.Extent.Start+at, bytes.Repeat([]byte("junk"), 1024))
	}
	p.log = nil
	return p
}

// chunks are what a part of a disk holds that is not zero.
func (p *memPair) chunks(disk int, e extent.Extent) map[int64][]byte {
	found := map[int64][]byte{}
	for at, b := range p.disks[disk].chunks {
		if at >= e.Start/chunkBytes && at < e.End/chunkBytes {
			found[at-e.Start/chunkBytes] = b
		}
	}
	return found
}

// open opens one of the disks as Open does, but attaches nothing.
func (p *memPair) open(t *testing.T, i int) *Disk {
	t.Helper()
	m := p.disks[i]
	s, _, err := m.openTable(t, p.l, false)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{device: &blockDevice{layout: p.l, path: "a disk in memory", name: "memory", sys: t.TempDir()}, store: s, slots: map[string]slot{}, unflushed: map[string]bool{}, moving: map[string]bool{}, watchdog: newWatchdog(0)}
	if d.slots, err = readSlots(m, s.table); err != nil {
		t.Fatal(err)
	}
	s.dev = pairDisk{m, p, i}
	d.publish()
	return d
}

// openBoth opens both disks, the second one first if reversed.
func (p *memPair) openBoth(t *testing.T, reversed bool) (source, target *Disk) {
	t.Helper()
	if reversed {
		target = p.open(t, 1)
	}
	source = p.open(t, 0)
	if !reversed {
		target = p.open(t, 1)
	}
	return source, target
}

// run is what MoveTo does, without a kernel. It returns how much of the log was there when the volume had left.
func (p *memPair) run(ctx context.Context, t *testing.T, source, target *Disk) (left int, err error) {
	t.Helper()
	if _, err := target.store.table.volume(guidA); err == nil {
		return len(p.log), nil
	}
	if e, err := source.store.table.volume(guidLeft); err != nil || e.phase() != Moved {
		from, err := source.store.table.movable(guidA)
		if err != nil {
			return 0, err
		}
		kept := source.slots[guidA]
		to, resumed, tailIsZero, err := target.ensureArrival(ctx, set{first: from}, kept, p.o)
		if err != nil {
			return 0, err
		}
		if tailIsZero {
			t.Error("the end of the target counts as zero")
		}
		mm := &memMove{window: units.MiB}
		job := mm.job(p.disks[1], from.extent, to.extent, resumed)
		job.source.device, job.target.device = pairDisk{p.disks[0], p, 0}, pairDisk{p.disks[1], p, 1}
		job.zero = func(_ context.Context, part extent.Extent) error {
			_, err := job.target.device.WriteAt(make([]byte, part.Len()), part.Start)
			return errors.Join(err, job.target.device.Sync())
		}
		job.rewriteAll = target.unflushed[p.o.Copy]
		if err := job.run(ctx); err != nil {
			target.unflushed[p.o.Copy] = job.flushFailed
			return 0, err
		}
		if err := target.proveArrival(ctx, kept, p.o); err != nil {
			return 0, err
		}
		if err := source.commitDeparture(ctx, kept, p.o); err != nil {
			return 0, err
		}
	}
	left = len(p.log)
	// As commitArrival, which also asks the kernel.
	copied, err := target.store.table.volume(p.o.Copy)
	if err != nil {
		return left, err
	}
	_, err = target.writeArrived(ctx, copied, p.o)
	return left, err
}

// movedState is what the tables of both disks say about the move.
type movedState struct{ source, target string }

// check asserts what every moment of a move has: one of the two disks is the one whose entry counts, and that entry has
// all of the volume's bytes.
func (p *memPair) check(t *testing.T, what string, source, target *Disk) movedState {
	t.Helper()
	phases := func(d *Disk) (out string) {
		for _, e := range d.store.table.entries {
			switch e.guid {
			case guidA:
				out += "a:" + string(e.phase())
			case p.o.Copy:
				out += "copy:" + string(e.phase())
			case guidLeft:
				out += "left:" + string(e.phase())
			default:
				continue
			}
			if e.name != "default/pod" || e.attributes != AttributeEphemeral {
				t.Fatalf("%s: the entry is %+v", what, e)
			}
		}
		return out
	}
	now := movedState{phases(source), phases(target)}
	if !slices.Contains([]movedState{
		{"a:Formatted", ""}, {"a:Formatted", "copy:Arriving"}, {"left:Moved", "copy:Arriving"}, {"left:Moved", "a:Formatted"},
	}, now) {
		t.Fatalf("%s: the disks have %+v", what, now)
	}
	// The source alone decides.
	at, where := 0, p.from
	if now.source == "left:Moved" {
		at, where = 1, p.o.Extent
	}
	if !maps.EqualFunc(p.chunks(at, where), p.data, bytes.Equal) {
		t.Fatalf("%s: with %+v the volume does not hold its content", what, now)
	}
	if now.source == "a:Formatted" && source.slots[guidA] != p.kept || now.target == "a:Formatted" && target.slots[guidA] != p.kept {
		t.Fatalf("%s: with %+v, of the volume %+v and %+v are kept", what, now, source.slots[guidA], target.slots[guidA])
	}
	// What the volume leaves still holds it, until it is wiped.
	if !maps.EqualFunc(p.chunks(0, p.from), p.data, bytes.Equal) {
		t.Fatalf("%s: with %+v the place that the volume leaves was written", what, now)
	}
	return now
}

// cuts calls visit with every pair of disks that a power cut may leave. Of each disk, everything up to its last flush
// before the cut is on the medium, and any part of what follows. written is how much of the log had certainly reached
// the media.
func (p *memPair) cuts(before [2]*memDisk, log []pairWrite, random *rand.Rand, visit func(cut *memPair, written int)) {
	stable := [2]*memDisk{before[0].clone(), before[1].clone()}
	var pending [2][]loggedWrite
	// A write of the table is cut at every chunk, and one of the volume's bytes into a few parts.
	part := func(w loggedWrite) int { return max(chunkBytes, len(w.data)/8) }
	state := func(disk int, subset func(int) bool) *memDisk {
		cut, at := stable[disk].clone(), 0
		for _, w := range pending[disk] {
			for off := 0; off < len(w.data); off += part(w) {
				if subset(at) {
					cut.write(w.off+int64(off), w.data[off:min(off+part(w), len(w.data))])
				}
				at++
			}
		}
		return cut
	}
	parts := func(disk int) (n int) {
		for _, w := range pending[disk] {
			n += (len(w.data) + part(w) - 1) / max(1, part(w))
		}
		return n
	}
	all := func(int) bool { return true }
	visitAll := func(written int) {
		for disk := range stable {
			others := []func(int) bool{all, func(int) bool { return false }, func(int) bool { return random.IntN(2) == 0 }}
			for _, subset := range subsets(parts(disk), random) {
				cut := *p
				cut.log = nil
				cut.disks[disk] = state(disk, subset)
				cut.disks[1-disk] = state(1-disk, others[random.IntN(len(others))])
				visit(&cut, written)
			}
		}
	}
	for i, w := range log {
		if w.data != nil {
			pending[w.disk] = append(pending[w.disk], w.loggedWrite)
			continue
		}
		visitAll(i)
		stable[w.disk] = state(w.disk, all)
		pending[w.disk] = nil
	}
	visitAll(len(log))
}

// TestPowerCutsInMoveTo cuts the power at every write of a move to another disk, and of one that is resumed after a
// cut. It asserts that one disk has the volume, whole, and that the source alone says which. In both orders in which
// the disks are seen, the move can be resumed and ends with the volume on the target.
func TestPowerCutsInMoveTo(t *testing.T) {
	random := rand.New(rand.NewPCG(17, 18))
	seen, states := map[movedState]int{}, 0
	for _, l := range crashLayouts(t) {
		for _, resumed := range []bool{false, true} {
			p := newMemPair(t, l)
			ctx := withoutLogs(t)
			if resumed {
				// A copy that an earlier move has begun. The volume has changed since.
				source, target := p.openBoth(t, false)
				from, _ := source.store.table.volume(guidA)
				if _, _, _, err := target.ensureArrival(ctx, set{first: from}, p.kept, p.o); err != nil {
					t.Fatal(err)
				}
				for at, b := range p.data {
					p.disks[1].write(p.o.Extent.Start+at*chunkBytes, b)
				}
				p.disks[0].write(p.from.Start+8192, bytes.Repeat([]byte{9}, 4096))
				p.data = p.chunks(0, p.from)
			}
			before := [2]*memDisk{p.disks[0].clone(), p.disks[1].clone()}
			source, target := p.openBoth(t, false)
			p.log = nil
			left, err := p.run(ctx, t, source, target)
			if err != nil {
				t.Fatal(err)
			}
			if now := p.check(t, "at the end", source, target); now != (movedState{"left:Moved", "a:Formatted"}) {
				t.Fatalf("at the end the disks have %+v", now)
			}
			done := len(p.log)
			p.cuts(before, p.log, random, func(cut *memPair, written int) {
				states++
				source, target := cut.openBoth(t, random.IntN(2) == 0)
				now := cut.check(t, "after a cut", source, target)
				seen[now]++
				if written >= left && now.source != "left:Moved" || written >= done && now.target != "a:Formatted" {
					t.Fatalf("it was acknowledged at %d and %d of %d, and the disks have %+v", left, done, written, now)
				}
				if random.IntN(8) > 0 {
					return
				}
				if _, err := cut.run(ctx, t, source, target); err != nil {
					t.Fatalf("cut at %+v, and resumed: %v", now, err)
				}
				source, target = cut.openBoth(t, random.IntN(2) == 0)
				if now := cut.check(t, "resumed", source, target); now != (movedState{"left:Moved", "a:Formatted"}) {
					t.Fatalf("resumed, the disks have %+v", now)
				}
			})
		}
	}
	t.Logf("%d states: %v", states, seen)
	if states < 1000 || len(seen) != 4 {
		t.Errorf("%d states: %v", states, seen)
	}
}

// TestMoveToFaults makes every single operation on either disk fail once, fail for good, or be dropped. It asserts that
// one disk has the volume, whole. The next move, of the same agent or of another, ends the work.
func TestMoveToFaults(t *testing.T) {
	outcomes := map[string]int{}
	for _, faulty := range []int{0, 1} {
		for _, fault := range []struct {
			name    string
			dropped bool
			fails   func(n, at int) bool
		}{
			{"once", false, func(n, at int) bool { return n == at }},
			{"from then on", false, func(n, at int) bool { return n >= at }},
			{"dropped", true, func(n, at int) bool { return n == at }},
		} {
			for at, reached := 0, true; reached; at++ {
				p := newMemPair(t, crashLayouts(t)[at%2])
				ctx := withoutLogs(t)
				source, target := p.openBoth(t, false)
				reached = false
				m := p.disks[faulty]
				m.operations, m.fault = 0, func(n int, _ string) (error, bool) {
					if !fault.fails(n, at) {
						return nil, false
					}
					reached = true
					if fault.dropped {
						return nil, true
					}
					return errInjected, false
				}
				_, err := p.run(ctx, t, source, target)
				m.fault = nil
				switch {
				case err == nil:
					outcomes["moved"]++
				case errors.Is(err, ErrOutOfService):
					outcomes["out of service"]++
				default:
					outcomes["failed"]++
				}
				// A disk that is out of service is opened again.
				if errors.Is(err, ErrOutOfService) || at%2 == 0 {
					source, target = p.openBoth(t, at%4 == 0)
				}
				now := p.check(t, fault.name, source, target)
				if err == nil && now.target != "a:Formatted" {
					t.Fatalf("%s at %d of disk %d: it is not moved: %+v", fault.name, at, faulty, now)
				}
				if _, err := p.run(ctx, t, source, target); err != nil {
					t.Fatalf("%s at %d of disk %d, then: %v", fault.name, at, faulty, err)
				}
				source, target = p.openBoth(t, false)
				if now := p.check(t, fault.name, source, target); now.target != "a:Formatted" {
					t.Fatalf("%s at %d of disk %d, then: %+v", fault.name, at, faulty, now)
				}
			}
		}
	}
	t.Logf("%v", outcomes)
	if len(outcomes) != 3 {
		t.Errorf("%v", outcomes)
	}
}
