package disk

import (
	"errors"
	"fmt"
	"github.com/berthdev/berth/pkg/extent"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
)

// step is one change of a table, as Create, MarkFormatted and Wipe make it, or several
// without a restart in between.
type step struct {
	name string
	do   func(t testing.TB, s *store) error
	then []step
}

// done is a table that was acknowledged, and how long the log was then.
type done struct {
	entries []entry
	log     int
}

// all does the step and those that follow, and returns the table after each.
func (st step) all(t testing.TB, m *memDisk, s *store) []done {
	t.Helper()
	if err := st.do(t, s); err != nil {
		t.Fatalf("%s: %v", st.name, err)
	}
	tables := []done{{slices.Clone(s.table.entries), len(m.log)}}
	for _, next := range st.then {
		tables = append(tables, next.all(t, m, s)...)
	}
	return tables
}

func (st step) and(then ...step) step {
	st.then = append(slices.Clone(st.then), then...)
	return st
}

func reserve(guid string, start, length int64) step {
	return step{name: "reserve", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: at(start, length), Ephemeral: true})
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

func raw(guid string, start, length int64) step {
	return step{name: "raw", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Extent: at(start, length), Raw: true})
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

func grow(guid string, length int64) step {
	return step{name: "grow", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withLength(guid, length*mib)
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

// early is a reserve as Create makes it, and what the owner does behind it.
func early(guid string, start, length int64) step {
	return step{name: "early", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: at(start, length)})
		if err != nil {
			return err
		}
		return s.putEarly(quiet(t), next, e)
	}}.and(step{name: "finish", do: func(t testing.TB, s *store) error { return s.finish(quiet(t)) }})
}

func phase(guid string, to Phase) step {
	return step{name: string(to), do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, to)
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

// ahead is what Format does while mkfs runs, back what it does when that fails.
func ahead(guid string) step {
	return step{name: "ahead", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, Formatted)
		if err != nil {
			return err
		}
		return s.putAhead(quiet(t), next, e)
	}}
}

func back() step {
	return step{name: "back", do: func(t testing.TB, s *store) error {
		return s.takeBack(quiet(t))
	}}
}

func remove(guid string) step {
	return step{name: "remove", do: func(t testing.TB, s *store) error {
		i := s.table.find(guid)
		next, err := s.table.without(guid)
		if err != nil {
			return err
		}
		return s.drop(quiet(t), next, s.table.entries[i].index)
	}}
}

// life is what a disk goes through: entries in one sector and in others.
func life() []step {
	steps := []step{early(a, 2, 3), phase(a, Formatted), early(b, 5, 1), phase(b, Formatted), phase(a, Wiping), remove(a), reserve(c, 2, 3)}
	for i := range int64(40) {
		make := []func(string, int64, int64) step{reserve, early}[i%2]
		steps = append(steps, make(uuid.NewSHA1(uuid.Nil, []byte{byte(i)}).String(), 6+i, 1))
	}
	return append(steps, phase(b, Wiping), remove(b),
		// Formatted as Manager does it, alone and with others' changes in between.
		ahead(c).and(phase(c, Formatted)),
		early(a, 50, 1).and(ahead(a), early(b, 51, 1), ahead(b), phase(a, Formatted), phase(b, Formatted)),
		reserve(c2, 52, 1).and(ahead(c2), back(), ahead(c2), phase(a, Wiping), phase(c2, Wiping)),
		raw(c3, 57, 1), grow(c3, 2), grow(c, 4),
		reserve(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), 47, 1).and(
			ahead(uuid.NewSHA1(uuid.Nil, []byte("x")).String()), grow(c3, 3), phase(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), Formatted)),
		phase(c3, Wiping), remove(c3),
	)
}

// crashLayouts are small disks: their tables are as large as any.
func crashLayouts(t testing.TB) []layout {
	t.Helper()
	var all []layout
	for _, sector := range []int64{512, 4096} {
		l, err := newLayout(64*mib, sector)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// formatted is a disk of ours, in memory, with a foreign entry whose bytes go-diskfs
// could not reproduce.
func formatted(t testing.TB, l layout) (*memDisk, []byte) {
	t.Helper()
	// Half a surrogate pair, and text behind the end of the name.
	return formattedWith(t, l, []byte{'x', 0, 0x00, 0xd8, 0, 0, 'y', 0, 'z', 0})
}

// formattedWith is a disk of ours, in memory, with a foreign entry of that name.
func formattedWith(t testing.TB, l layout, name []byte) (*memDisk, []byte) {
	t.Helper()
	m := newMemDisk()
	if _, err := format(quiet(t), m, l); err != nil {
		t.Fatal(err)
	}
	s, _, err := m.mounted(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	f := foreign(l, 300, 60*mib/l.sector, 61*mib/l.sector)
	strange, err := s.current().withEntry(l, f)
	if err != nil {
		t.Fatal(err)
	}
	clear(strange.slot(300)[56:])
	copy(strange.slot(300)[56:], name)
	next := s.table
	next.entries = append(slices.Clone(next.entries), f)
	if err := s.commit(quiet(t), next, 300, strange.slot(300)); err != nil {
		t.Fatal(err)
	}
	m.log = nil
	return m, slices.Clone(strange.slot(300))
}

// TestPowerCuts cuts the power at every write of a disk's life, lets it recover, cuts
// the power again during the recovery and during the first change after it. What was
// acknowledged is there; what was not is there or is not; the rest is untouched.
func TestPowerCuts(t *testing.T) {
	const least = 10_000
	c := cuts{random: rand.New(rand.NewPCG(3, 4))}
	for _, l := range crashLayouts(t) {
		disk, strange := formatted(t, l)
		for _, step := range life() {
			c.step(t, disk, l, step, strange)
		}
	}
	t.Logf("%d states", c.states)
	if c.states < least {
		t.Errorf("%d states were looked at, which is less than %d", c.states, least)
	}
}

// TestTorture is TestPowerCuts with lives at random, until a million states were looked
// at. It takes a quarter of an hour.
func TestTorture(t *testing.T) {
	if os.Getenv("BERTH_TORTURE") == "" {
		t.Skip("set BERTH_TORTURE=1 for it")
	}
	const least = 1_000_000
	var states atomic.Int64
	for worker := range uint64(runtime.GOMAXPROCS(0)) {
		t.Run(fmt.Sprint(worker), func(t *testing.T) {
			t.Parallel()
			for life := uint64(0); states.Load() < least; life++ {
				c := cuts{random: rand.New(rand.NewPCG(worker, life))}
				l := crashLayouts(t)[life%2]
				disk, strange := formatted(t, l)
				for range 30 {
					s, _, err := disk.mounted(t, l, false)
					if err != nil {
						t.Fatal(err)
					}
					c.step(t, disk, l, anyStep(c.random, s.table), strange)
				}
				total := states.Add(int64(c.states))
				t.Logf("life %d of worker %d: %d states, %d in all", life, worker, c.states, total)
			}
		})
	}
}

// anyStep is a step that is possible with the table, or several of them.
func anyStep(random *rand.Rand, now table) step {
	var id [16]byte
	for i := range id {
		id[i] = byte(random.Uint32())
	}
	guid := uuid.NewSHA1(uuid.Nil, id[:]).String()
	start, length := 2+random.Int64N(50), 1+random.Int64N(3)
	made := []func(string, int64, int64) step{reserve, early}[random.IntN(2)](guid, start, length)
	if random.IntN(4) == 0 {
		made = raw(guid, start, length)
	}
	var possible []step
	// The last MiBs are for the change after a recovery.
	if now.free().Contains(at(start, length)) {
		possible = append(possible, made, made)
		if made.name != "raw" {
			possible = append(possible, made.and(ahead(guid), phase(guid, Formatted)), made.and(ahead(guid), back()))
		}
	}
	for _, e := range now.entries {
		if !e.isVolume() {
			continue
		}
		switch phaseOf[e.kind] {
		case Reserved:
			possible = append(possible, phase(e.guid, Formatted), ahead(e.guid).and(phase(e.guid, Formatted)), phase(e.guid, Wiping))
			if len(possible) > 4 {
				// Another change between the two halves.
				possible = append(possible, ahead(e.guid).and(possible[0], phase(e.guid, Formatted)))
			}
		case Formatted:
			possible = append(possible, phase(e.guid, Wiping))
			if e.extent.End < 53*mib && now.free().Contains(extent.New(e.extent.End, mib)) {
				possible = append(possible, grow(e.guid, e.extent.Len()/mib+1))
			}
		case Wiping:
			possible = append(possible, remove(e.guid))
		}
	}
	if len(possible) == 0 {
		return back()
	}
	return possible[random.IntN(len(possible))]
}

// cuts looks at what power cuts leave, and counts the states.
type cuts struct {
	random *rand.Rand
	states int
	// recovered, if set, is called with some of the disks that have recovered.
	recovered func(m *memDisk)
}

// step does a step on the disk and looks at every state that a power cut during it may
// leave. strange is what must be in entry 300.
func (c *cuts) step(t *testing.T, disk *memDisk, l layout, step step, strange []byte) {
	t.Helper()
	before := disk.clone()
	s, _, err := disk.mounted(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(s.table.entries)
	disk.log = nil
	tables := step.all(t, disk, s)
	// check recovers a disk and returns what it did for that. written is how much of the
	// step's log was on the medium.
	check := func(m *memDisk, written int) []logged {
		c.states++
		m.log = nil
		s, _, err := m.mounted(t, l, false)
		if err != nil {
			t.Fatalf("%s: after a power cut: %v", step.name, err)
		}
		last, next := old, old
		for _, d := range tables {
			next = d.entries
			if d.log > written {
				break
			}
			last = next
		}
		if got := s.table.entries; !sameVolumes(got, last) && !sameVolumes(got, next) {
			t.Fatalf("%s: after a power cut:\n%v, neither the table before,\n%v, nor the one after,\n%v", step.name, brief(got), brief(last), brief(next))
		}
		if !slices.Equal(s.current().slot(300), strange) {
			t.Fatalf("%s: a foreign entry has changed", step.name)
		}
		if f, err := examine(m, l); err != nil || f.badMBR || f.badPrimary || f.badBackup {
			t.Fatalf("%s: not repaired: %+v, %v", step.name, f, err)
		}
		return m.log
	}
	powerCuts(before, disk.log, c.random, func(cut *memDisk, written int) {
		recovered := cut.clone()
		repairs := check(recovered, written)
		if c.recovered != nil {
			c.recovered(recovered)
		}
		powerCuts(cut, repairs, c.random, func(again *memDisk, _ int) { check(again.clone(), written) })
		c.change(t, recovered, l, step.name)
	})
}

// change makes a change right after a recovery, cut as well. No volume is lost by it.
func (c *cuts) change(t *testing.T, recovered *memDisk, l layout, after string) {
	t.Helper()
	s, _, err := recovered.mounted(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(s.table.entries)
	before := recovered.clone()
	recovered.log = nil
	extra := reserve(uuid.NewSHA1(uuid.Nil, []byte("extra")).String(), 55, 2)
	if err := extra.do(t, s); err != nil {
		t.Fatal(err)
	}
	now := s.table.entries
	powerCuts(before, recovered.log, c.random, func(again *memDisk, _ int) {
		c.states++
		s, _, err := again.mounted(t, l, false)
		if err != nil {
			t.Fatalf("%s, then a change: %v", after, err)
		}
		if got := s.table.entries; !sameVolumes(got, old) && !sameVolumes(got, now) {
			t.Fatalf("%s, then a change:\n%v, neither\n%v nor\n%v", after, brief(got), brief(old), brief(now))
		}
	})
}

// brief are the entries, as "1:a0000000:Reserved@2+10".
func brief(entries []entry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, fmt.Sprintf("%d:%s:%s@%d+%d", e.index, e.guid[:8], phaseOf[e.kind], e.extent.Start/mib, e.extent.Len()/mib))
	}
	return all
}

// sameVolumes compares entries but for the strange name, which decodes as it may.
func sameVolumes(x, y []entry) bool {
	return slices.EqualFunc(x, y, func(a, b entry) bool {
		if a.index == 300 {
			a.name, b.name = "", ""
		}
		return a == b
	})
}

// TestPowerCutsInFormat: at every moment the disk is blank, so that it can be
// formatted, or ours, so that it can be opened.
func TestPowerCutsInFormat(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for _, l := range crashLayouts(t) {
		m := newMemDisk()
		if _, err := format(quiet(t), m, l); err != nil {
			t.Fatal(err)
		}
		seen := map[bool]int{}
		powerCuts(newMemDisk(), m.log, random, func(cut *memDisk, written int) {
			f, err := examine(cut, l)
			if err != nil {
				t.Fatal(err)
			}
			seen[f.ours]++
			if f.ours {
				if s, _, err := cut.mounted(t, l, false); err != nil || len(s.table.entries) != 1 {
					t.Fatalf("half a format does not open: %v", err)
				}
				return
			}
			if blank, err := isBlank(cut, l); err != nil || !blank || f.foreign || written == len(m.log) {
				t.Fatalf("half a format is neither blank nor ours: %+v, %v", f, err)
			}
			if _, err := format(quiet(t), cut, l); err != nil {
				t.Fatal(err)
			}
			if _, _, err := cut.mounted(t, l, false); err != nil {
				t.Fatal(err)
			}
		})
		if seen[true] == 0 || seen[false] == 0 {
			t.Errorf("%v: not all kinds of states were seen", seen)
		}
	}
}

// TestPowerCutsInRestore: the beginning of a disk is lost, its table restored from
// the backup; however often the power fails meanwhile, nothing is lost.
func TestPowerCutsInRestore(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	states := 0
	for _, l := range crashLayouts(t) {
		disk, _ := formatted(t, l)
		s, _, err := disk.mounted(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range life() {
			step.all(t, disk, s)
		}
		want := slices.Clone(s.table.entries)
		disk.set(0, make([]byte, mib))
		before := disk.clone()
		disk.log = nil
		if _, f, err := disk.mounted(t, l, false); err == nil || !f.needsKnown {
			t.Fatalf("a backup alone was trusted: %+v, %v", f, err)
		}
		if len(disk.log) > 0 {
			t.Fatal("a disk that was not accepted was written to")
		}
		if _, _, err := disk.mounted(t, l, true); err != nil {
			t.Fatal(err)
		}
		powerCuts(before, disk.log, random, func(cut *memDisk, _ int) {
			states++
			s, _, err := cut.mounted(t, l, true)
			if err != nil || !sameVolumes(s.table.entries, want) {
				t.Fatalf("after a power cut in a restore: %v", err)
			}
			if _, f, err := cut.mounted(t, l, false); err != nil || f.badPrimary || f.badBackup {
				t.Fatalf("not restored: %+v, %v", f, err)
			}
		})
	}
	t.Logf("%d states", states)
}

// TestFaults lets every single operation of a change fail, be dropped, or fail for
// good. The change is done, or the disk is out of service and old or new on a restart.
func TestFaults(t *testing.T) {
	for _, l := range crashLayouts(t) {
		for _, fault := range []struct {
			name  string
			fails func(n, at int) (error, bool)
		}{
			{"once", func(n, at int) (error, bool) {
				if n == at {
					return errInjected, false
				}
				return nil, false
			}},
			{"from then on", func(n, at int) (error, bool) {
				if n >= at {
					return errInjected, false
				}
				return nil, false
			}},
			{"dropped", func(n, at int) (error, bool) { return nil, n == at }},
			{"dropped from then on", func(n, at int) (error, bool) { return nil, n >= at }},
		} {
			outcomes := map[bool]int{}
			for at := range 18 {
				disk, _ := formatted(t, l)
				s, _, err := disk.mounted(t, l, false)
				if err != nil {
					t.Fatal(err)
				}
				if err := reserve(a, 2, 3).do(t, s); err != nil {
					t.Fatal(err)
				}
				old := slices.Clone(s.table.entries)
				disk.n = 0
				disk.failing = func(n int, _ string) (error, bool) { return fault.fails(n, at) }
				err = phase(a, Formatted).do(t, s)
				outcomes[err == nil]++
				got := phaseOf[s.table.entries[0].kind]
				disk.failing = nil
				if err != nil {
					if !errors.Is(err, ErrOutOfService) || !sameVolumes(s.table.entries, old) {
						t.Errorf("%s at %d: %v, %s", fault.name, at, err, got)
					}
				} else if got != Formatted {
					t.Errorf("%s at %d: done, but %s", fault.name, at, got)
				}
				again, f, openErr := disk.mounted(t, l, false)
				if openErr != nil {
					t.Errorf("%s at %d: %v; then %+v, %v", fault.name, at, err, f, openErr)
					continue
				}
				if p := phaseOf[again.table.entries[0].kind]; p != Formatted && (err == nil || p != Reserved) {
					t.Errorf("%s at %d: %v; then %s", fault.name, at, err, p)
				}
			}
			t.Logf("%s: %v", fault.name, outcomes)
		}
	}
}
