package disk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/berthdev/berth/test/units"
)

// crashLayouts are small disks. Their tables are as large as those of any disk.
func crashLayouts(t testing.TB) []layout {
	t.Helper()
	var all []layout
	for _, sector := range []int64{512, 4096} {
		l, err := newLayout(64*units.MiB, sector)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// newFormattedDisk is a disk of ours, in memory, with a foreign entry whose bytes go-diskfs
// could not reproduce.
func newFormattedDisk(t testing.TB, l layout) (*memDisk, []byte) {
	t.Helper()
	// Half a surrogate pair, and text behind the end of the name.
	return newFormattedDiskWith(t, l, []byte{'x', 0, 0x00, 0xd8, 0, 0, 'y', 0, 'z', 0})
}

// newOwnDisk is a new disk of ours, in memory.
func newOwnDisk(t testing.TB, l layout, owner Owner) *memDisk {
	t.Helper()
	m := newMemDisk()
	if _, err := format(withoutLogs(t), m, l, owner); err != nil {
		t.Fatal(err)
	}
	return m
}

// newFormattedDiskWith is a disk of ours, in memory, with a foreign entry of that name.
func newFormattedDiskWith(t testing.TB, l layout, name []byte) (*memDisk, []byte) {
	t.Helper()
	m := newOwnDisk(t, l, Owner{})
	s, _, err := m.openTable(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	f := foreignEntry(l, 300, 60*units.MiB/l.sector, 61*units.MiB/l.sector)
	strange, err := s.current().withEntry(l, f)
	if err != nil {
		t.Fatal(err)
	}
	clear(strange.entryBytes(300)[56:])
	copy(strange.entryBytes(300)[56:], name)
	next := s.table
	next.entries = append(slices.Clone(next.entries), f)
	err = s.change(withoutLogs(t), next, func() error {
		return s.copyPair.put(withoutLogs(t), []entryChange{{300, strange.entryBytes(300)}}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	m.log = nil
	return m, slices.Clone(strange.entryBytes(300))
}

// TestPowerCuts cuts the power at every write of a disk's life, and again during the recovery and the first change
// after it. It asserts that acknowledged changes are there, that the change in progress is there or not, and that
// nothing else changed.
func TestPowerCuts(t *testing.T) {
	const least = 10_000
	c := powerCutTest{random: rand.New(rand.NewPCG(3, 4))}
	for _, l := range crashLayouts(t) {
		disk, strange := newFormattedDisk(t, l)
		for _, step := range volumeLife() {
			c.runStep(t, disk, l, step, strange)
		}
	}
	t.Logf("%d states", c.states)
	if c.states < least {
		t.Errorf("%d states were looked at, which is less than %d", c.states, least)
	}
}

// TestTorture is TestPowerCuts with random lives, until enough states were checked. Disks are adopted and grow. Volumes
// are made, grow and are wiped. A copy of the table is damaged and recovers. A million states take a quarter of an
// hour.
func TestTorture(t *testing.T) {
	least := int64(5_000)
	if os.Getenv("BERTH_TORTURE") != "" {
		least = 1_000_000
	}
	var states, lives, recoveries atomic.Int64
	for worker := range uint64(runtime.GOMAXPROCS(0)) {
		t.Run(strconv.FormatUint(worker, 10), func(t *testing.T) {
			t.Parallel()
			for life := uint64(0); states.Load() < least; life++ {
				c := powerCutTest{random: rand.New(rand.NewPCG(worker, life))}
				l := crashLayouts(t)[life%2]
				c.formatBlank(t, l)
				disk, strange := newFormattedDisk(t, l)
				for range 15 {
					if c.random.IntN(10) == 0 {
						l = c.damageAndRecover(t, disk, l, strange)
						recoveries.Add(1)
						continue
					}
					s, _, err := disk.openTable(t, l, false)
					if err != nil {
						t.Fatal(err)
					}
					c.runStep(t, disk, l, randomStep(c.random, s.table), strange)
				}
				total := states.Add(int64(c.states))
				lives.Add(1)
				t.Logf("life %d of worker %d: %d states, %d in all", life, worker, c.states, total)
			}
		})
	}
	t.Cleanup(func() {
		t.Logf("%d states of %d lives with %d recoveries, 0 unrecovered unless it says so above", states.Load(), lives.Load(), recoveries.Load())
		if recoveries.Load() == 0 {
			t.Error("nothing recovered")
		}
	})
}

// powerCutTest checks what power cuts leave, and counts the states.
type powerCutTest struct {
	random *rand.Rand
	states int
	// recovered, if set, is called with some of the disks that have recovered.
	recovered func(m *memDisk)
}

// runStep does a step on the disk, and checks every state that a power cut during it may leave. strange is what entry
// 300 must have.
func (c *powerCutTest) runStep(t *testing.T, disk *memDisk, l layout, runStep step, strange []byte) {
	t.Helper()
	before := disk.clone()
	s, _, err := disk.openTable(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(s.table.entries)
	disk.log = nil
	tables := runStep.run(t, disk, s)
	// check recovers a disk and returns the writes that this took. written is how much of the step's log was on the
	// medium.
	check := func(m *memDisk, written int) []loggedWrite {
		c.states++
		m.log = nil
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatalf("%s: after a power cut: %v", runStep.name, err)
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
			t.Fatalf("%s: after a power cut:\n%v, neither the table before,\n%v, nor the one after,\n%v", runStep.name, describeEntries(got), describeEntries(last), describeEntries(next))
		}
		if !slices.Equal(s.current().entryBytes(300), strange) {
			t.Fatalf("%s: a foreign entry has changed", runStep.name)
		}
		if f, err := examine(m, l); err != nil || f.badMBR || f.badPrimary || f.badBackup {
			t.Fatalf("%s: not repaired: %+v, %v", runStep.name, f, err)
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
		c.changeAfterRecovery(t, recovered, l, runStep.name)
	})
}

// changeAfterRecovery makes a change right after a recovery, with power cuts, too. It asserts that no volume is lost.
func (c *powerCutTest) changeAfterRecovery(t *testing.T, recovered *memDisk, l layout, after string) {
	t.Helper()
	s, _, err := recovered.openTable(t, l, false)
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
		s, _, err := again.openTable(t, l, false)
		if err != nil {
			t.Fatalf("%s, then a change: %v", after, err)
		}
		if got := s.table.entries; !sameVolumes(got, old) && !sameVolumes(got, now) {
			t.Fatalf("%s, then a change:\n%v, neither\n%v nor\n%v", after, describeEntries(got), describeEntries(old), describeEntries(now))
		}
	})
}

// describeEntries are the entries, as "1:a0000000:Reserved@2+10".
func describeEntries(entries []entry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, fmt.Sprintf("%d:%s:%s@%d+%d", e.index, e.guid[:8], phaseOf[e.typeGUID], e.extent.Start/units.MiB, e.extent.Len()/units.MiB))
	}
	return all
}

// sameVolumes compares entries except for the strange name, whose decoding does not matter.
func sameVolumes(x, y []entry) bool {
	return slices.EqualFunc(x, y, func(a, b entry) bool {
		if a.index == 300 {
			a.name, b.name = "", ""
		}
		return a == b
	})
}

// TestPowerCutsInFormat asserts that at every moment the disk is blank, so that it can be formatted, or ours, so that
// it can be opened.
func TestPowerCutsInFormat(t *testing.T) {
	c := powerCutTest{random: rand.New(rand.NewPCG(5, 6))}
	for _, l := range crashLayouts(t) {
		c.formatBlank(t, l)
	}
	t.Logf("%d states", c.states)
}

// TestPowerCutsInRestore asserts that nothing is lost when the power fails repeatedly while a table is restored. The
// beginning of the disk is lost, and its backup is used.
func TestPowerCutsInRestore(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	states := 0
	for _, l := range crashLayouts(t) {
		disk, _ := newFormattedDisk(t, l)
		s, _, err := disk.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range volumeLife() {
			step.run(t, disk, s)
		}
		want := slices.Clone(s.table.entries)
		disk.write(0, make([]byte, units.MiB))
		before := disk.clone()
		disk.log = nil
		if _, f, err := disk.openTable(t, l, false); err == nil || !f.mustBeSeenBefore {
			t.Fatalf("a backup alone was trusted: %+v, %v", f, err)
		}
		if len(disk.log) > 0 {
			t.Fatal("a disk that was not accepted was written to")
		}
		if _, _, err := disk.openTable(t, l, true); err != nil {
			t.Fatal(err)
		}
		powerCuts(before, disk.log, random, func(cut *memDisk, _ int) {
			states++
			s, _, err := cut.openTable(t, l, true)
			if err != nil || !sameVolumes(s.table.entries, want) {
				t.Fatalf("after a power cut in a restore: %v", err)
			}
			if _, f, err := cut.openTable(t, l, false); err != nil || f.badPrimary || f.badBackup {
				t.Fatalf("not restored: %+v, %v", f, err)
			}
		})
	}
	t.Logf("%d states", states)
}
