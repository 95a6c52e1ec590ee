package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	guids "github.com/berthdev/berth/apis/disk/partition"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// piecesTable is a table with a Formatted volume a of that many pieces, of 1 MiB each, with 1 MiB between them.
func piecesTable(t testing.TB, pieces int) table {
	t.Helper()
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	o := CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 1), Ephemeral: true}
	for i := range int64(pieces - 1) {
		o.Pieces = append(o.Pieces, extentMiB(4+2*i, 1))
	}
	now, _, err := newTable(l, diskID, metaID).withNew(o)
	if err == nil {
		now, _, err = now.withPhase(guidA, Formatted)
	}
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// TestIncompleteSets asserts that a volume whose pieces another program changed is valid, is listed with the reason,
// keeps its space, and is neither formatted, grown nor moved. It can be wiped, piece by piece.
func TestIncompleteSets(t *testing.T) {
	at := func(now table, number int) *entry { return &now.entries[now.indexOf(guids.PieceID(guidA, number))] }
	for _, test := range []struct {
		name   string
		change func(now *table)
		want   string
	}{
		{"nothing", func(*table) {}, ""},
		{"a piece is gone", func(now *table) { now.entries = slices.Delete(now.entries, 1, 2) }, "piece 1 of the 2 that its first one names is not in the table"},
		{"the last piece is gone", func(now *table) { now.entries = slices.Delete(now.entries, 2, 3) }, "piece 2 of the 2 that its first one names is not in the table"},
		{"a piece has the type of a volume", func(now *table) { at(*now, 1).typeGUID = TypeFormatted }, "piece 1 of the 2"},
		{"a piece has another GUID", func(now *table) { at(*now, 2).guid = guidC }, "piece 2 of the 2"},
		{"a piece has another number", func(now *table) { e := at(*now, 2); *e = e.withPieceField(1) }, "attributes are those of piece 1"},
		{"the first piece names fewer", func(now *table) { now.entries[0] = now.entries[0].withPieceField(1) }, "the table has a piece 2, and the first one names 1"},
		{"the first piece names none", func(now *table) { now.entries[0] = now.entries[0].withPieceField(0) }, "the table has a piece 1, and the first one names 0"},
		{"the first piece names more", func(now *table) { now.entries[0] = now.entries[0].withPieceField(5) }, "piece 3 of the 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := piecesTable(t, 3)
			now.entries = slices.Clone(now.entries)
			test.change(&now)
			if err := now.validate(); err != nil {
				t.Fatal(err)
			}
			v, err := now.set(guidA)
			if err != nil {
				t.Fatal(err)
			}
			if got := v.incomplete(); !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
				t.Errorf("incomplete: %q, want %q", got, test.want)
			}
			for _, e := range now.entries {
				if now.free().Overlaps(e.extent) {
					t.Errorf("entry %d is free", e.index)
				}
			}
			_, _, grown := now.withLength(guidA, v.length()+units.MiB)
			_, _, another := now.withPiece(guidA, len(v.pieces)+1, extentMiB(20, 1))
			_, _, formatted := now.withPhase(guidA, Formatted)
			_, _, copied := now.withCopy(guidA, guidB, extentMiB(20, 10))
			for what, err := range map[string]error{"growth": grown, "another piece": another, "a phase": formatted, "a copy": copied} {
				if errors.Is(err, ErrIncomplete) != (test.want != "") || err != nil && test.want == "" {
					t.Errorf("%s: %v", what, err)
				}
			}
			if now, _, err = now.withPhase(guidA, Wiping); err != nil {
				t.Fatal(err)
			}
			for {
				next, _, _, err := now.withoutPiece(guidA)
				if err != nil {
					break
				}
				now = next
				if err := now.validate(); err != nil {
					t.Fatal(err)
				}
			}
			if now, err = now.without(guidA); err != nil {
				t.Fatal(err)
			}
			if now.indexOf(guidA) >= 0 || now.indexOf(guids.PieceID(guidA, 3)) >= 0 {
				t.Errorf("left: %v", describeEntries(now.entries))
			}
		})
	}
}

// TestOrphanPiece asserts that a piece whose first piece is gone is listed as an orphan, keeps its space, and becomes a
// volume of its own in phase Wiping when it is wiped. A piece that has a volume cannot be wiped alone.
func TestOrphanPiece(t *testing.T) {
	whole := piecesTable(t, 3)
	piece := guids.PieceID(guidA, 2)
	if _, _, err := whole.withOrphanWiping(piece); !errors.Is(err, ErrNotFound) {
		t.Errorf("the wipe of a piece of a volume: %v", err)
	}
	left := whole
	left.entries = slices.Delete(slices.Clone(whole.entries), 0, 1)
	volumes, orphans := left.sets()
	if len(volumes) != 0 || len(orphans) != 2 || orphans[1].guid != piece || left.free().Overlaps(orphans[1].extent) {
		t.Fatalf("volumes %v, orphans %v", volumes, orphans)
	}
	if _, _, err := left.withPhase(piece, Wiping); !errors.Is(err, ErrNotFound) {
		t.Errorf("an orphan counts as a volume: %v", err)
	}
	now, e, err := left.withOrphanWiping(piece)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := now.volume(piece); err != nil || got != e || e.phase() != Wiping || e.attributes != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if now, err = now.without(piece); err != nil || !now.free().Contains(e.extent) {
		t.Errorf("the end of an orphan: %v", err)
	}
}

// modelSet is a volume in the oracle: its phase, and the MiBs of each piece in order.
type modelSet struct {
	phase  Phase
	pieces [][]int64
}

func (m *modelSet) all() []int64 {
	if m == nil {
		return nil
	}
	return slices.Concat(m.pieces...)
}

// TestRandomPieces compares random plans for volumes of several pieces with an oracle that knows the MiBs of each
// volume, in order. It asserts that every set stays complete, that each plan changes the entries of one volume only,
// and that the pieces' order is never lost.
func TestRandomPieces(t *testing.T) {
	l, err := newLayout(64*units.MiB, 512)
	if err != nil {
		t.Fatal(err)
	}
	const end = 63
	guidOf := func(name string) string { return uuid.NewSHA1(uuid.Nil, []byte(name)).String() }
	possible := map[string][2]int{}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 77))
		now := newTable(l, diskID, metaID)
		model := map[string]*modelSet{}
		taken := func() map[int64]bool {
			all := map[int64]bool{}
			for _, v := range model {
				for _, at := range v.all() {
					all[at] = true
				}
			}
			return all
		}
		run := func(start, length int64) (all []int64) {
			for i := range length {
				all = append(all, start+i)
			}
			return all
		}
		fits := func(at []int64, other ...[]int64) bool {
			used := taken()
			for _, o := range slices.Concat(append(other, at)...) {
				if used[o] || o < 2 || o >= end {
					return false
				}
				used[o] = true
			}
			return len(at) > 0
		}
		for range 400 {
			name := []string{"a", "b", "c"}[random.IntN(3)]
			v, other := model[name], model["copy of "+name]
			guid, copyGUID := guidOf(name), guidOf("copy of "+name)
			at, more := run(random.Int64N(end), random.Int64N(4)), run(random.Int64N(end), 1+random.Int64N(3))
			if random.IntN(4) == 0 {
				at = run(random.Int64N(end), random.Int64N(20))
			}
			usable := v != nil && (v.phase == Reserved || v.phase == Formatted)
			var next table
			var want bool
			var err error
			op := []string{"new", "new in pieces", "piece", "piece", "piece", "wrong piece", "grow", "format", "wipe", "drop", "drop", "drop", "drop copy", "copy", "switch"}[random.IntN(15)]
			after := map[string]*modelSet{}
			switch op {
			case "new", "new in pieces":
				o := CreateOptions{Partition: guid, Name: name, Extent: extentMiB(at0(at), int64(len(at)))}
				made := &modelSet{Reserved, [][]int64{at}}
				want = v == nil && fits(at)
				if op == "new in pieces" {
					o.Pieces = []extent.Extent{extentMiB(more[0], int64(len(more)))}
					made.pieces = append(made.pieces, more)
					want = v == nil && len(at) > 0 && fits(more, at)
				}
				next, _, err = now.withNew(o)
				after[name] = made
			case "piece", "wrong piece":
				number := 1
				if v != nil {
					number = len(v.pieces)
				}
				want = usable && number < guids.MaxPieces && fits(at)
				if op == "wrong piece" {
					number, want = number+1-2*random.IntN(2), false
				}
				next, _, err = now.withPiece(guid, number, extentMiB(at0(at), int64(len(at))))
				if want {
					after[name] = &modelSet{v.phase, append(slices.Clone(v.pieces), at)}
				}
			case "grow":
				n := 1 + random.Int64N(3)
				if v == nil {
					next, _, err = now.withLength(guid, n*units.MiB)
					break
				}
				last := v.pieces[len(v.pieces)-1]
				tail := run(last[len(last)-1]+1, n)
				want = usable && fits(tail)
				next, _, err = now.withLength(guid, (int64(len(v.all()))+n)*units.MiB)
				grown := slices.Clone(v.pieces)
				grown[len(grown)-1] = append(slices.Clone(last), tail...)
				after[name] = &modelSet{v.phase, grown}
			case "format", "wipe":
				to := map[string]Phase{"format": Formatted, "wipe": Wiping}[op]
				want = usable
				next, _, err = now.withPhase(guid, to)
				if want {
					after[name] = &modelSet{to, v.pieces}
				}
			case "drop", "drop copy":
				gone, of := name, v
				if op == "drop copy" {
					gone, of = "copy of "+name, other
				}
				want = of != nil && of.phase == Wiping
				if want && len(of.pieces) > 1 {
					if _, early := now.without(guidOf(gone)); early == nil {
						t.Fatal("the first piece was dropped before the others")
					}
					next, _, _, err = now.withoutPiece(guidOf(gone))
					after[gone] = &modelSet{Wiping, of.pieces[:len(of.pieces)-1]}
				} else {
					next, err = now.without(guidOf(gone))
					after[gone] = nil
				}
			case "copy":
				want = v != nil && v.phase == Formatted && other == nil && fits(at) && len(at) >= len(v.all())
				next, _, err = now.withCopy(guid, copyGUID, extentMiB(at0(at), int64(len(at))))
				after["copy of "+name] = &modelSet{Copying, [][]int64{at}}
			case "switch":
				want = v != nil && v.phase == Formatted && other != nil && other.phase == Copying && len(other.all()) >= len(v.all())
				next, _, _, err = now.withMoved(guid, copyGUID)
				if want {
					after[name], after["copy of "+name] = &modelSet{Formatted, other.pieces}, &modelSet{Wiping, v.pieces}
				}
			}
			if (err == nil) != want {
				t.Fatalf("seed %d, %s of %s at %v: %v, the oracle says %t; %v", seed, op, name, at, err, want, describeEntries(now.entries))
			}
			count := possible[op]
			count[map[bool]int{true: 0, false: 1}[want]]++
			possible[op] = count
			if err != nil {
				continue
			}
			if err := next.validate(); err != nil {
				t.Fatal(err)
			}
			for changed, to := range after {
				if model[changed] = to; to == nil {
					delete(model, changed)
				}
			}
			checkOthersUnchanged(t, op, now, next, guid, copyGUID)
			now = next
			checkModel(t, op, now, model, guidOf)
		}
	}
	for op, count := range possible {
		if count[0] == 0 && op != "wrong piece" || count[1] == 0 {
			t.Errorf("%s: %d were possible, %d were not", op, count[0], count[1])
		}
	}
}

func at0(at []int64) int64 {
	if len(at) == 0 {
		return 2
	}
	return at[0]
}

// checkOthersUnchanged asserts that only entries of one volume, or of its copy, differ between the tables.
func checkOthersUnchanged(t *testing.T, op string, before, after table, guid, copyGUID string) {
	t.Helper()
	own := map[string]bool{}
	for number := range guids.MaxPieces {
		own[guids.PieceID(guid, number)], own[guids.PieceID(copyGUID, number)] = true, true
	}
	others := func(all []entry) (left []entry) {
		for _, e := range all {
			if !own[e.guid] {
				left = append(left, e)
			}
		}
		return left
	}
	if !slices.Equal(others(before.entries), others(after.entries)) {
		t.Fatalf("%s changed other volumes: %v, %v", op, describeEntries(before.entries), describeEntries(after.entries))
	}
}

// checkModel asserts that the table has the volumes of the model, complete and in order, and reads back the same.
func checkModel(t *testing.T, op string, now table, model map[string]*modelSet, guidOf func(string) string) {
	t.Helper()
	volumes, orphans := now.sets()
	if len(volumes) != len(model) || len(orphans) > 0 {
		t.Fatalf("%s: %v, the oracle has %v", op, describeEntries(now.entries), model)
	}
	for name, want := range model {
		v, err := now.set(guidOf(name))
		if err != nil || v.incomplete() != "" || v.first.phase() != want.phase {
			t.Fatalf("%s: %+v, %v, the oracle has %+v", op, v, err, want)
		}
		var got [][]int64
		for _, e := range v.extents() {
			var piece []int64
			for at := e.Start; at < e.End; at += units.MiB {
				piece = append(piece, at/units.MiB)
			}
			got = append(got, piece)
		}
		if fmt.Sprint(got) != fmt.Sprint(want.pieces) {
			t.Fatalf("%s: %s is at %v, the oracle has %v", op, name, got, want.pieces)
		}
	}
	if back, err := decode(now.layout, encodeTable(t, now)); err != nil || !slices.Equal(back.entries, now.entries) {
		t.Fatalf("%s: reads back as %v, %v", op, back.entries, err)
	}
}

// TestMostPieces asserts that a volume gets 16 pieces and not 17, and that a set that another program made longer is
// incomplete.
func TestMostPieces(t *testing.T) {
	now := piecesTable(t, guids.MaxPieces)
	if _, _, err := now.withPiece(guidA, guids.MaxPieces, extentMiB(40, 1)); !errors.Is(err, ErrNoEntry) {
		t.Errorf("piece %d: %v", guids.MaxPieces, err)
	}
	if v, err := now.set(guidA); err != nil || v.incomplete() != "" || len(v.entries()) != guids.MaxPieces || v.length() != guids.MaxPieces*units.MiB {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestShowsPart asserts which devices may show a volume whose growth was cut short.
func TestShowsPart(t *testing.T) {
	v, err := piecesTable(t, 3).set(guidA)
	if err != nil {
		t.Fatal(err)
	}
	half := extent.New(4*units.MiB, units.MiB/2)
	for _, test := range []struct {
		shows []extent.Extent
		want  bool
	}{
		{[]extent.Extent{extentMiB(2, 1), extentMiB(4, 1), extentMiB(6, 1)}, true},
		{[]extent.Extent{extentMiB(2, 1), extentMiB(4, 1)}, true},
		{[]extent.Extent{extentMiB(2, 1), half}, true},
		{[]extent.Extent{extentMiB(2, 1)}, true},
		{nil, false},
		{[]extent.Extent{extentMiB(4, 1)}, false},
		{[]extent.Extent{extentMiB(2, 1), half, extentMiB(6, 1)}, false},
		{[]extent.Extent{extentMiB(2, 1), extentMiB(6, 1)}, false},
		{[]extent.Extent{extentMiB(2, 1), extentMiB(4, 2)}, false},
		{[]extent.Extent{extentMiB(2, 1), extentMiB(4, 1), extentMiB(6, 1), extentMiB(8, 1)}, false},
	} {
		if got := v.showsPart(test.shows); got != test.want {
			t.Errorf("%v: %t", test.shows, got)
		}
	}
}

// TestPieceIsAligned asserts that a table with a piece that is not aligned is invalid, like one with such a volume.
func TestPieceIsAligned(t *testing.T) {
	now := piecesTable(t, 2)
	now.entries = slices.Clone(now.entries)
	now.entries[1].extent = extent.New(now.entries[1].extent.Start, units.MiB/2)
	if err := now.validate(); err == nil || !strings.Contains(err.Error(), "not aligned") {
		t.Errorf("a piece of half a MiB: %v", err)
	}
}
