package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// layouts are disks of various sizes, both sector sizes each.
func layouts(t testing.TB) []layout {
	t.Helper()
	var all []layout
	for _, sector := range []int64{512, 4096} {
		for _, size := range []int64{minDiskSize, 64 * units.MiB, 64*units.MiB + 7*4096, 3 << 40} {
			l, err := newLayout(size, sector)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
	}
	return all
}

const (
	diskID = "d0000000-0000-4000-8000-00000000000d"
	metaID = "e0000000-0000-4000-8000-00000000000e"
)

// fullTable has a volume in every entry that can hold one.
func fullTable(t testing.TB, l layout) table {
	t.Helper()
	full := newTable(l, diskID, metaID)
	for i := range int64(MaxVolumes) {
		var err error
		full, _, err = full.withNew(CreateOptions{
			Partition: uuid.NewString(), Name: fmt.Sprint("default/pod-", i), Extent: extentMiB(2+2*i, 1), Ephemeral: i%2 == 0,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return full
}

// encodeTable renders a whole table.
func encodeTable(t testing.TB, tbl table) tableCopy {
	t.Helper()
	c := tableCopy{id: tbl.id, array: make([]byte, arrayBytes)}
	for _, e := range tbl.entries {
		var err error
		if c, err = c.withEntry(tbl.layout, e); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestTableIsFull asserts that a volume beyond the last entry gets ErrNoEntry.
func TestTableIsFull(t *testing.T) {
	l, err := newLayout(1<<40, 512)
	if err != nil {
		t.Fatal(err)
	}
	full := fullTable(t, l)
	if _, _, err := full.withNew(CreateOptions{Partition: guidA, Extent: extentMiB(5001, 1)}); !errors.Is(err, ErrNoEntry) {
		t.Errorf("a volume too many: %v", err)
	}
	_ = encodeTable(t, full)
}

// TestLayout asserts where the parts of a table lie, and that impossible sizes and sectors are refused.
func TestLayout(t *testing.T) {
	for _, l := range layouts(t) {
		u, m := l.usable(), l.managed()
		if u.Start != 2*l.sector+arrayBytes || u.End != l.size-l.sector-arrayBytes {
			t.Errorf("%+v: usable %v", l, u)
		}
		if m.Start != units.MiB || m.End > u.End || u.End-m.End >= units.MiB || m.End%units.MiB != 0 {
			t.Errorf("%+v: managed %v", l, m)
		}
		e := extent.New(units.MiB, 2*units.MiB)
		if back, err := l.extentOf(l.sectorsOf(e)); err != nil || back != e {
			t.Errorf("%+v: %v came back as %v, %v", l, e, back, err)
		}
		for _, bad := range [][2]uint64{{2, 1}, {0, l.lastLBA() + 1}, {1 << 63, 1<<64 - 1}, {0, 1<<64 - 1}} {
			if e, err := l.extentOf(bad[0], bad[1]); err == nil {
				t.Errorf("%+v: sectors %v accepted as %v", l, bad, e)
			}
		}
	}
	for _, bad := range [][2]int64{{0, 512}, {-1, 512}, {minDiskSize - 512, 512}, {64 * units.MiB, 513}, {64 * units.MiB, 0}, {64*units.MiB + 512, 4096}, {1 << 62, 512}, {64 * units.MiB, 1 << 20}} {
		if _, err := newLayout(bad[0], bad[1]); err == nil {
			t.Errorf("layout of %d bytes in sectors of %d accepted", bad[0], bad[1])
		}
	}
}

// foreignEntry is an entry of another program, without alignment.
func foreignEntry(l layout, index int, start, end int64) entry {
	return entry{index: index, typeGUID: "0fc63daf-8483-4772-8e79-3d69d8477de4", guid: uuid.NewString(), name: "Дата 数据",
		extent: extent.Extent{Start: start * l.sector, End: end * l.sector}, attributes: 1<<63 | 4}
}

// TestValidate asserts which tables are valid, and what is wrong with the others.
func TestValidate(t *testing.T) {
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	volume := func(index int, guid string, e extent.Extent) entry {
		return entry{index: index, typeGUID: TypeFormatted, guid: guid, extent: e}
	}
	meta := newTable(l, diskID, metaID).entries[0]
	moved, elsewhere := meta, meta
	moved.extent = extentMiB(2, 1)
	elsewhere.index = 254
	for _, test := range []struct {
		name    string
		entries []entry
		want    string // part of the error, or empty
	}{
		{"no volumes", []entry{meta}, ""},
		{"volumes that touch", []entry{volume(1, guidA, extentMiB(2, 5)), volume(2, guidB, extentMiB(7, 5)), meta}, ""},
		{"foreign entries anywhere", []entry{volume(1, guidA, extentMiB(3, 5)), meta, foreignEntry(l, 300, 300, 333)}, ""},
		{"no meta partition", []entry{volume(1, guidA, extentMiB(2, 5))}, "no meta partition"},
		{"meta partition moved", []entry{moved}, "belongs into entry"},
		{"meta partition in another entry", []entry{elsewhere}, "belongs into entry"},
		{"same index twice", []entry{volume(1, guidA, extentMiB(2, 5)), volume(1, guidB, extentMiB(8, 5)), meta}, "comes after"},
		{"index zero", []entry{volume(0, guidA, extentMiB(2, 5)), meta}, "comes after"},
		{"index too large", []entry{meta, foreignEntry(l, EntryCount+1, 300, 333)}, "comes after"},
		{"same GUID twice", []entry{volume(1, guidA, extentMiB(2, 5)), volume(2, guidA, extentMiB(8, 5)), meta}, "share the GUID"},
		{"no GUID", []entry{volume(1, uuid.Nil.String(), extentMiB(2, 5)), meta}, "no GUID"},
		{"overlap", []entry{volume(1, guidA, extentMiB(2, 5)), volume(2, guidB, extentMiB(6, 5)), meta}, "overlap"},
		{"overlap with meta", []entry{volume(1, guidA, extentMiB(1, 5)), meta}, "overlap"},
		{"overlap with foreign", []entry{volume(1, guidA, extentMiB(2, 5)), meta, foreignEntry(l, 256, 2*2048+5, 2*2048+6)}, "overlap"},
		{"behind the end", []entry{volume(1, guidA, extentMiB(60, 4)), meta}, "not between"},
		{"in the head", []entry{volume(1, guidA, extentMiB(0, 1)), meta}, "not between"},
		{"empty", []entry{volume(1, guidA, extentMiB(5, 0)), meta}, "not between"},
		{"volume not aligned", []entry{volume(1, guidA, extent.New(2*units.MiB+512, units.MiB)), meta}, "not aligned"},
		{"a copy beside its volume", []entry{volume(1, guidA, extentMiB(2, 5)), {index: 2, typeGUID: TypeCopying, guid: guidB, extent: extentMiB(7, 5)}, meta}, ""},
		{"a copy over its volume", []entry{volume(1, guidA, extentMiB(2, 5)), {index: 2, typeGUID: TypeCopying, guid: guidB, extent: extentMiB(6, 5)}, meta}, "overlap"},
		{"a copy that is not aligned", []entry{{index: 2, typeGUID: TypeCopying, guid: guidB, extent: extent.New(2*units.MiB+512, units.MiB)}, meta}, "not aligned"},
		{"volume in a later entry", []entry{meta, volume(256, guidA, extentMiB(2, 1))}, ""},
	} {
		err := table{layout: l, id: diskID, entries: test.entries}.validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// TestForeignIsNeverFree asserts that every MiB that a foreign partition touches is taken.
func TestForeignIsNeverFree(t *testing.T) {
	for _, l := range layouts(t) {
		if l.size < 16*units.MiB {
			continue
		}
		tbl := newTable(l, diskID, metaID)
		// From the last sector of one MiB to the first of another: both MiBs are taken.
		start, end := 6*units.MiB/l.sector-1, 9*units.MiB/l.sector+1
		tbl.entries = append(tbl.entries, foreignEntry(l, 256, start, end))
		if err := tbl.validate(); err != nil {
			t.Fatal(err)
		}
		if free := tbl.free(); free.Overlaps(extentMiB(5, 5)) || !free.Contains(extentMiB(2, 3)) || !free.Contains(extentMiB(10, 1)) {
			t.Errorf("%+v: free %v", l, free)
		}
		if _, _, err := tbl.withNew(CreateOptions{Partition: guidA, Extent: extentMiB(9, 1)}); !errors.Is(err, ErrOverlap) {
			t.Errorf("%+v: volume over a foreign partition: %v", l, err)
		}
	}
}

// TestCheckVolume asserts which GUIDs, names and extents a volume can have.
func TestCheckVolume(t *testing.T) {
	for _, test := range []struct {
		guid, name string
		e          extent.Extent
		ok         bool
	}{
		{guidA, "", extentMiB(2, 1), true},
		{guidA, strings.Repeat("x", 36), extentMiB(2, 1), true},
		{guidA, strings.Repeat("x", 37), extentMiB(2, 1), false},
		{guidA, "tab\there", extentMiB(2, 1), false},
		{guidA, "naïve", extentMiB(2, 1), false},
		{strings.ToUpper(guidA), "", extentMiB(2, 1), false},
		{"", "", extentMiB(2, 1), false},
		{uuid.Nil.String(), "", extentMiB(2, 1), false},
		{"{" + guidA + "}", "", extentMiB(2, 1), false},
		{guidA, "", extentMiB(2, 0), false},
		{guidA, "", extentMiB(2, -1), false},
		{guidA, "", extentMiB(-2, 1), false},
		{guidA, "", extent.New(2*units.MiB+1, units.MiB), false},
		{guidA, "", extent.New(2*units.MiB, units.MiB+1), false},
	} {
		if err := checkVolume(test.guid, test.name, test.e); (err == nil) != test.ok {
			t.Errorf("%q %q %v: %v", test.guid, test.name, test.e, err)
		}
	}
}

// TestPhases asserts that every step of the state machine is possible, and no other.
func TestPhases(t *testing.T) {
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[[2]Phase]bool{
		{Reserved, Formatted}: true, {Reserved, Wiping}: true,
		{Formatted, Formatted}: true, {Formatted, Wiping}: true,
		{Copying, Wiping}: true, {Arriving, Wiping}: true, {Moved, Wiping}: true,
	}
	phases := []Phase{Reserved, Formatted, Wiping, Copying, Arriving, Moved}
	for _, from := range phases {
		start, _, err := newTable(l, diskID, metaID).withNew(CreateOptions{Partition: guidA, Extent: extentMiB(2, 1)})
		switch {
		case err != nil:
		case from == Copying || from == Arriving || from == Moved:
			start.entries[0].typeGUID = typeOf[from]
		case from != Reserved:
			start, _, err = start.withPhase(guidA, from)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := start.withLength(guidA, 2*units.MiB); (err == nil) != (from == Reserved || from == Formatted) {
			t.Errorf("growth of a %s volume: %v", from, err)
		}
		if _, _, err := start.withCopy(guidA, guidB, extentMiB(5, 1)); (err == nil) != (from == Formatted) {
			t.Errorf("a copy of a %s volume: %v", from, err)
		}
		if _, _, err := start.withLeft(guidA, guidB); (err == nil) != (from == Formatted) {
			t.Errorf("a %s volume leaves: %v", from, err)
		}
		if _, _, err := start.withArrived(guidA, guidB); (err == nil) != (from == Arriving) {
			t.Errorf("a %s volume arrives: %v", from, err)
		}
		for _, taken := range []string{guidA, metaID} {
			if _, _, err := start.withArrived(guidA, taken); err == nil {
				t.Errorf("two entries get the GUID %s", taken)
			}
		}
		for _, to := range phases {
			if _, _, err := start.withPhase(guidA, to); (err == nil) != allowed[[2]Phase{from, to}] {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
		if _, err := start.without(guidA); (err == nil) != (from == Wiping) {
			t.Errorf("removal of a %s volume: %v", from, err)
		}
		if _, err := start.without(metaID); !errors.Is(err, ErrNotFound) {
			t.Errorf("removal of the meta partition: %v", err)
		}
	}
}

// TestRandomLife compares thousands of random plans with an oracle that marks bytes, and asserts that every table reads
// back the same.
func TestRandomLife(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, l := range layouts(t) {
		tbl := newTable(l, diskID, metaID)
		if l.size > 60*units.MiB && l.size < 100*units.MiB {
			tbl.entries = append(tbl.entries, foreignEntry(l, 256, 20*units.MiB/l.sector-3, 21*units.MiB/l.sector-1))
		}
		owner := map[int64]string{} // by MiB
		for _, e := range tbl.entries {
			for m := alignDown(e.extent.Start) / units.MiB; m*units.MiB < e.extent.End; m++ {
				owner[m] = e.guid
			}
		}
		end := min(l.managed().End/units.MiB, 64)
		var live []string
		for range 300 {
			switch random.IntN(3) {
			case 0, 1:
				guid, e := uuid.NewString(), extentMiB(random.Int64N(end+2), random.Int64N(6))
				fits := !e.Empty() && l.managed().Contains(e)
				for m := e.Start / units.MiB; m < e.End/units.MiB; m++ {
					fits = fits && owner[m] == ""
				}
				next, _, err := tbl.withNew(CreateOptions{Partition: guid, Name: "random", Extent: e})
				if (err == nil) != fits {
					t.Fatalf("%+v: volume at %v: %v, the oracle says %v", l, e, err, fits)
				}
				if err != nil {
					continue
				}
				tbl, live = next, append(live, guid)
				for m := e.Start / units.MiB; m < e.End/units.MiB; m++ {
					owner[m] = guid
				}
			case 2:
				if len(live) == 0 {
					continue
				}
				i := random.IntN(len(live))
				next, _, err := tbl.withPhase(live[i], Wiping)
				if err != nil {
					t.Fatal(err)
				}
				if tbl, err = next.without(live[i]); err != nil {
					t.Fatal(err)
				}
				for m := range owner {
					if owner[m] == live[i] {
						delete(owner, m)
					}
				}
				live = append(live[:i], live[i+1:]...)
			}
			if err := tbl.validate(); err != nil {
				t.Fatal(err)
			}
			for m := range end {
				inside := l.managed().Contains(extentMiB(m, 1))
				if free := tbl.free().Contains(extentMiB(m, 1)); free != (inside && owner[m] == "") {
					t.Fatalf("%+v: MiB %d free: %v, its owner is %q", l, m, free, owner[m])
				}
			}
		}
		if back, err := decode(l, encodeTable(t, tbl)); err != nil || !slices.Equal(back.entries, tbl.entries) {
			t.Fatalf("%+v: %v", l, err)
		}
	}
}

// TestRandomMoves compares random plans of moves with an oracle, which has the owner of every MiB and the phase of
// every volume. A move changes two entries, and the bytes of all others stay the same.
func TestRandomMoves(t *testing.T) {
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	const end = 63 // where the managed area ends, in MiB
	names := []string{"a", "b", "c", "d"}
	possible := map[string][2]int{}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 31))
		tbl := newTable(l, diskID, metaID)
		var owner [end + 8]string
		owner[0], owner[1] = "table", "meta"
		for i := end; i < len(owner); i++ {
			owner[i] = "table"
		}
		phases := map[string]Phase{}
		lengthOf := func(name string) (n int64) {
			for _, o := range owner {
				if o == name {
					n++
				}
			}
			return n
		}
		free := func(start, length int64) bool {
			for _, o := range owner[start : start+length] {
				if o != "" {
					return false
				}
			}
			return length > 0
		}
		give := func(name string, start, length int64) {
			for i := start; i < start+length; i++ {
				owner[i] = name
			}
		}
		rename := func(names map[string]string) {
			for i, o := range owner {
				if to, found := names[o]; found {
					owner[i] = to
				}
			}
		}
		guidOf := func(name string) string { return uuid.NewSHA1(uuid.Nil, []byte(name)).String() }
		for range 300 {
			name := names[random.IntN(len(names))]
			copyName, start, length := "copy of "+name, random.Int64N(end), random.Int64N(8)
			guid, copyGUID := guidOf(name), guidOf(copyName)
			var op string
			var want bool
			var next table
			var err error
			switch op = []string{"new", "format", "copy", "copy", "switch", "switch", "wipe", "drop", "give up", "drop copy"}[random.IntN(10)]; op {
			case "new":
				want = phases[name] == "" && free(start, length)
				if next, _, err = tbl.withNew(CreateOptions{Partition: guid, Name: name, Extent: extentMiB(start, length), Ephemeral: true}); err == nil {
					give(name, start, length)
					phases[name] = Reserved
				}
			case "format":
				want = phases[name] == Reserved || phases[name] == Formatted
				if next, _, err = tbl.withPhase(guid, Formatted); err == nil {
					phases[name] = Formatted
				}
			case "copy":
				want = phases[name] == Formatted && phases[copyName] == "" && free(start, length) && length >= lengthOf(name)
				if next, _, err = tbl.withCopy(guid, copyGUID, extentMiB(start, length)); err == nil {
					give(copyName, start, length)
					phases[copyName] = Copying
				}
			case "switch":
				want = phases[name] == Formatted && phases[copyName] == Copying
				if next, _, _, err = tbl.withMoved(guid, copyGUID); err == nil {
					rename(map[string]string{name: copyName, copyName: name})
					phases[copyName] = Wiping
				}
			case "wipe":
				want = phases[name] == Reserved || phases[name] == Formatted
				if next, _, err = tbl.withPhase(guid, Wiping); err == nil {
					phases[name] = Wiping
				}
			case "give up":
				want = phases[copyName] == Copying
				if next, _, err = tbl.withPhase(copyGUID, Wiping); err == nil {
					phases[copyName] = Wiping
				}
			case "drop", "drop copy":
				gone := name
				if op == "drop copy" {
					gone = copyName
				}
				want = phases[gone] == Wiping
				if next, err = tbl.without(guidOf(gone)); err == nil {
					rename(map[string]string{gone: ""})
					delete(phases, gone)
				}
			}
			if (err == nil) != want {
				t.Fatalf("%s of %s at %d+%d: %v, the oracle says %t; %v, %v", op, name, start, length, err, want, phases, owner)
			}
			count := possible[op]
			if err != nil {
				count[1]++
				possible[op] = count
				continue
			}
			count[0]++
			possible[op] = count
			if err := next.validate(); err != nil {
				t.Fatal(err)
			}
			before, after, changed := encodeTable(t, tbl), encodeTable(t, next), 0
			for i := 1; i <= EntryCount; i++ {
				if !slices.Equal(before.entryBytes(i), after.entryBytes(i)) {
					changed++
				}
			}
			if most := map[bool]int{true: 2, false: 1}[op == "switch"]; changed != most && (op != "format" || changed != 0) {
				t.Fatalf("%s changed %d entries", op, changed)
			}
			tbl = next
			if len(tbl.entries) != len(phases)+1 {
				t.Fatalf("%s: %v, the oracle has %v", op, describeEntries(tbl.entries), phases)
			}
			for name, phase := range phases {
				e, err := tbl.volume(guidOf(name))
				if err != nil || e.phase() != phase || e.name != strings.TrimPrefix(name, "copy of ") || e.attributes != AttributeEphemeral {
					t.Fatalf("%s: %+v, %v; the oracle has %s as %s", op, e, err, name, phase)
				}
				for i := range int64(end) {
					if e.extent.Contains(extentMiB(i, 1)) != (owner[i] == name) {
						t.Fatalf("%s: %s is at %v, the oracle has %v", op, name, e.extent, owner)
					}
				}
			}
		}
	}
	for op, count := range possible {
		if count[0] == 0 || count[1] == 0 {
			t.Errorf("%s: %d were possible, %d were not", op, count[0], count[1])
		}
	}
}

// TestUnexpected asserts which partitions the kernel must remove, without a kernel.
func TestUnexpected(t *testing.T) {
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	full, _, err := newTable(l, diskID, metaID).withNew(CreateOptions{Partition: guidA, Extent: extentMiB(2, 10)})
	if err != nil {
		t.Fatal(err)
	}
	full.entries = append(full.entries, foreignEntry(l, 256, 300, 333))
	for _, test := range []struct {
		name string
		has  partition
		want bool
	}{
		{"the volume", partition{index: 1, extent: extentMiB(2, 10)}, false},
		{"the volume, still shorter", partition{index: 1, extent: extentMiB(2, 9)}, false},
		{"the volume, longer", partition{index: 1, extent: extentMiB(2, 11)}, true},
		{"the volume, elsewhere", partition{index: 1, extent: extentMiB(3, 9)}, true},
		{"the meta partition", partition{index: MetaEntry, extent: l.meta()}, false},
		{"the meta partition, shorter", partition{index: MetaEntry, extent: extent.New(units.MiB, 512)}, true},
		{"no entry", partition{index: 2, extent: extentMiB(30, 1)}, true},
		{"the volume's place, another number", partition{index: 2, extent: extentMiB(2, 10)}, true},
	} {
		got := full.unexpected(map[int]partition{test.has.index: test.has})
		if (len(got) > 0) != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
	several := full.unexpected(map[int]partition{9: {index: 9}, 1: {index: 1, extent: extentMiB(2, 10)}, 4: {index: 4}, 3: {index: 3}})
	if len(several) != 3 || several[0].index != 3 || several[1].index != 4 || several[2].index != 9 {
		t.Errorf("not in order, or not all: %v", several)
	}
}
