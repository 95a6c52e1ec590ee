package disk

import (
	"slices"
	"testing"

	"github.com/berthdev/berth/test/units"
)

// formatBlank makes a blank disk ours, with power cuts at every moment. It asserts that the disk is still blank, so
// that it can be formatted, or ours, so that it can be opened.
func (c *powerCutTest) formatBlank(t *testing.T, l layout) {
	t.Helper()
	m := newOwnDisk(t, l, Owner{})
	seen := map[bool]int{}
	powerCuts(newMemDisk(), m.log, c.random, func(cut *memDisk, written int) {
		c.states++
		f, err := examine(cut, l)
		if err != nil {
			t.Fatal(err)
		}
		seen[f.ours]++
		if f.ours {
			if s, _, err := cut.openTable(t, l, false); err != nil || len(s.table.entries) != 1 {
				t.Fatalf("half a format does not open: %v", err)
			}
			return
		}
		if blank, err := isBlank(cut, l); err != nil || !blank || f.foreign || written == len(m.log) {
			t.Fatalf("half a format is neither blank nor ours: %+v, %v", f, err)
		}
		if _, err := format(withoutLogs(t), cut, l, Owner{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := cut.openTable(t, l, false); err != nil {
			t.Fatal(err)
		}
	})
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("%v: not all kinds of states were seen", seen)
	}
}

// damageAndRecover damages a copy of the table of a known disk, or makes the disk grow. It cuts the power at every
// write of the recovery, of the recovery from that, and of the first change after it. It asserts that no entry changes,
// and returns the new layout.
func (c *powerCutTest) damageAndRecover(t *testing.T, disk *memDisk, l layout, strange []byte) layout {
	t.Helper()
	s, _, err := disk.openTable(t, l, true)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(s.table.entries)
	name := "grown"
	if c.random.IntN(5) == 0 {
		if l, err = newLayout(l.size+c.random.Int64N(4)*l.sector+units.MiB, l.sector); err != nil {
			t.Fatal(err)
		}
	} else {
		// The last damages are those by another program.
		damage := damages[1+c.random.IntN(6)]
		name = damage.name
		damage.do(disk, l, []location{l.primary(), l.backup()}[c.random.IntN(2)])
	}
	before := disk.clone()
	check := func(m *memDisk) []loggedWrite {
		c.states++
		m.log = nil
		s, _, err := m.openTable(t, l, true)
		if err != nil || !sameVolumes(s.table.entries, want) || !slices.Equal(s.current().entryBytes(300), strange) {
			t.Fatalf("%s: not recovered: %v", name, err)
		}
		if f, err := examine(m, l); err != nil || f.madeFor.size != 0 || f.badMBR || f.badPrimary || f.badBackup {
			t.Fatalf("%s: not repaired: %v, %v", name, f, err)
		}
		return m.log
	}
	powerCuts(before, check(disk), c.random, func(cut *memDisk, _ int) {
		recovered := cut.clone()
		repairs := check(recovered)
		// Repairs write whole copies, so there are many subsets. Only a sample gets a second cut.
		if c.random.IntN(10) != 0 {
			return
		}
		powerCuts(cut, repairs, c.random, func(again *memDisk, _ int) { check(again.clone()) })
		c.changeAfterRecovery(t, recovered, l, name)
	})
	return l
}
