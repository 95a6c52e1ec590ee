package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	guids "github.com/berthdev/berth/apis/disk/partition"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// threePieces are the places of a volume of 9 MiB, not in the order of the disk.
func threePieces() []extent.Extent {
	return []extent.Extent{extentMiB(10, 4), extentMiB(3, 2), extentMiB(20, 3)}
}

// putPieces writes a Formatted volume a at these extents into the table, with a slot, as an agent on a kernel with the
// device mapper left it. All of its bytes are written with canaries. The disk is closed.
func putPieces(t *testing.T, l *loopDisk, at []extent.Extent) {
	t.Helper()
	d := l.open(t)
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		next, e, err := d.store.table.withNew(CreateOptions{Partition: guidA, Name: "default/web data", Extent: at[0], Pieces: at[1:], Ephemeral: true})
		if err != nil {
			return err
		}
		if err := d.store.putSet(ctx, next, next.setOf(e).entries(), false, nil); err != nil {
			return err
		}
		if err := d.setPhase(ctx, guidA, Formatted); err != nil {
			return err
		}
		return d.writeSlotProven(e, slot{note: "of a", wipe: WipeSettings{Policy: WipeOverwrite}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range at {
		fillWithData(t, l, e)
	}
	l.removePartitions(t)
}

// holdsZeros reports whether the disk has only zeros there.
func (l *loopDisk) holdsZeros(t *testing.T, e extent.Extent) bool {
	t.Helper()
	device, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	b := make([]byte, e.Len())
	if _, err := device.ReadAt(b, e.Start); err != nil {
		t.Fatal(err)
	}
	return allZero(b)
}

// TestWipePieces ends the agent at random moments of the wipe of a volume of three pieces. It asserts that the volume
// stays complete and Wiping, that pieces go from the last to the first, and each only when all of its bytes are zero,
// and that the wipe goes on where it was.
func TestWipePieces(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		random := rand.New(rand.NewPCG(9, uint64(sector)))
		l := initialized(t, 32*units.MiB, sector)
		l.wipeMethods.saveInterval = interval{units.MiB, 1 << 60}
		over := countCalls(&l.wipeMethods.overwrite)
		at := threePieces()
		putPieces(t, l, at)
		cuts, before := 0, 3
		for {
			d := l.open(t)
			v, found := ptr(d.Snapshot()).Volume(guidA)
			if !found {
				t.Fatal("the volume is gone before its wipe is done")
			}
			if v.Incomplete != "" || len(v.Pieces)+1 > before {
				t.Fatalf("after %d cuts: %+v", cuts, v)
			}
			before = len(v.Pieces) + 1
			for i, e := range at {
				if gone := i >= before; d.Snapshot().Free.Contains(e) != gone || gone && !l.holdsZeros(t, e) {
					t.Fatalf("piece %d of %d at %v: free %v", i, before, e, d.Snapshot().Free)
				}
			}
			ctx, cancel := context.WithCancel(withoutLogs(t))
			limit := 1 + random.Int64N(3)
			first, last := int64(-1), int64(-1)
			w, err := d.Wipe(ctx, guidA, WipeOptions{Progress: func(done int64) {
				if done < last {
					t.Errorf("progress went from %d to %d", last, done)
				}
				if first < 0 {
					first = done
				}
				if last = done; done >= first+limit*units.MiB {
					cancel()
				}
			}})
			cancel()
			if err == nil {
				if !w.Verified || w.Policy != WipeOverwrite || w.Pieces != before {
					t.Errorf("the record is %+v", w)
				}
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if now, _ := ptr(d.Snapshot()).Volume(guidA); now.Phase != Wiping || now.Device != "" {
				t.Fatalf("cut short: %+v", now)
			}
			cuts++
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if cuts < 3 {
			t.Errorf("%d cuts only", cuts)
		}
		for i, e := range threePieces() {
			if !l.holdsZeros(t, e) {
				t.Errorf("piece %d holds what it held", i)
			}
		}
		// Progress is kept every MiB: at most one of them is written again after a cut, and one piece more.
		if got := len(*over); got > 9+2*cuts {
			t.Errorf("%d MiB were overwritten for 9, in %d cuts", got, cuts)
		}
	})
}

// TestWipeIgnoresStaleProgress asserts that progress in the slot of a piece that an earlier volume of the same GUID
// left does not count: every byte of the piece is zeroed.
func TestWipeIgnoresStaleProgress(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	at := threePieces()
	putPieces(t, l, at)
	d := l.open(t)
	err := d.runInWorker(t.Context(), func(context.Context) error {
		s, err := d.store.table.set(guidA)
		if err != nil {
			return err
		}
		full := s.pieces[1].extent.Len()
		return d.writeSlotProven(s.pieces[1].entry, slot{wipe: WipeSettings{Policy: WipeOverwrite}, progress: progress{methodOverwrite, full, full}})
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := l.open(t).Wipe(withoutLogs(t), guidA, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, e := range threePieces() {
		if !l.holdsZeros(t, e) {
			t.Errorf("piece %d holds what it held", i)
		}
	}
}

// TestWipeIgnoresStaleProgressOfPolicy asserts that the progress of a piece's wipe does not count when the wipe goes on
// under another policy.
func TestWipeIgnoresStaleProgressOfPolicy(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	putPieces(t, l, threePieces())
	d := l.open(t)
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		if err := d.setPhase(ctx, guidA, Wiping); err != nil {
			return err
		}
		s, err := d.store.table.set(guidA)
		if err != nil {
			return err
		}
		full := s.pieces[1].extent.Len()
		return d.writeSlotProven(s.pieces[1].entry, slot{wipe: WipeSettings{Policy: WipeZero}, progress: progress{methodOverwrite, full, full}})
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := l.open(t).Wipe(withoutLogs(t), guidA, WipeOptions{Policy: WipeOverwrite}); err != nil {
		t.Fatal(err)
	}
	for i, e := range threePieces() {
		if !l.holdsZeros(t, e) {
			t.Errorf("piece %d holds what it held", i)
		}
	}
}

// TestNoMapper asserts that a kernel without the device mapper serves a disk with a volume of several pieces:
// the volume is listed with the reason and has no device, and neither have its pieces. No volume gets pieces there, and
// nothing is written.
func TestNoMapper(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	putPieces(t, l, threePieces())
	// A boot shows all entries that have a number.
	for i, e := range threePieces() {
		l.addPartition(t, i+1, e)
	}
	d, err := Open(withoutLogs(t), l.path, Options{noMapper: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := withoutLogs(t)
	v, _ := ptr(d.Snapshot()).Volume(guidA)
	if v.Device != "" || v.Attachment != "" || !strings.Contains(v.NotAttached, "device mapper") || v.Incomplete != "" || v.Length() != 9*units.MiB || len(v.Pieces) != 2 {
		t.Errorf("%+v", v)
	}
	for i := range threePieces() {
		if p, shown := l.partitions(t)[i+1]; shown {
			t.Errorf("the kernel shows %+v", p)
		}
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(26, 1), Attachment: DeviceMapper}); err != nil {
		t.Fatalf("a volume of one piece: %v", err)
	}
	d.waitIdle(t)
	table := l.tables(t)
	_, created := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(28, 1), Pieces: []extent.Extent{extentMiB(30, 1)}})
	_, added := d.AddPiece(ctx, guidB, 1, extentMiB(28, 1))
	_, attached := d.Attach(ctx, guidA, Partition)
	for what, err := range map[string]error{"Create": created, "AddPiece": added, "Attach": attached} {
		if !errors.Is(err, ErrNoMapper) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, err := d.Attach(ctx, guidB, DeviceMapper); err != nil || b.Attachment != Partition {
		t.Errorf("a volume of one piece: %+v, %v", b, err)
	}
	if !bytes.Equal(l.tables(t), table) {
		t.Error("the table was changed")
	}
	if !strings.Contains(added.Error(), "cannot get another piece") {
		t.Errorf("AddPiece zeroed the space first: %v", added)
	}
	if s, err := Read(l.path); err != nil || len(s.Volumes) != 2 || len(s.Volumes[0].Pieces) != 2 || s.Volumes[0].Device != "" {
		t.Errorf("Read: %+v, %v", s.Volumes, err)
	}
}

// TestOrphanPieceOnDisk asserts that the disk serves with a piece whose volume is gone, that the piece is shown as such
// and keeps its space, and that a wipe of its GUID frees it with all bytes zero.
func TestOrphanPieceOnDisk(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	at := threePieces()
	putPieces(t, l, at)
	d := l.open(t)
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		next := d.store.table
		next.entries = next.entries[1:]
		return d.store.drop(ctx, next, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = l.open(t)
	ctx := withoutLogs(t)
	piece := guids.PieceID(guidA, 1)
	v, found := ptr(d.Snapshot()).Volume(piece)
	if !found || v.Phase != OrphanPiece || v.Incomplete == "" || v.Device != "" || v.Ephemeral || v.Extent != at[1] || d.Snapshot().Free.Overlaps(at[1]) {
		t.Errorf("%+v", v)
	}
	for what, err := range map[string]error{
		"MarkFormatted": d.MarkFormatted(ctx, piece),
		"Grow":          second(d.Grow(ctx, piece, 5*units.MiB)),
		"Move":          second(d.Move(ctx, MoveOptions{Partition: piece, Copy: guidC, Extent: extentMiB(28, 2)})),
	} {
		if err == nil {
			t.Errorf("%s of an orphan succeeded", what)
		}
	}
	if _, err := d.Wipe(ctx, piece, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if !d.Snapshot().Free.Contains(at[1]) || !l.holdsZeros(t, at[1]) || d.Snapshot().Free.Overlaps(at[2]) {
		t.Errorf("after the wipe: %+v", d.Snapshot())
	}
}

func second[T any](_ T, err error) error { return err }

// TestIncompleteOnDisk asserts that a disk serves with a volume of which a piece is gone. The volume has no device, its
// calls fail with ErrIncomplete, and it can be wiped.
func TestIncompleteOnDisk(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	at := threePieces()
	putPieces(t, l, at)
	d := l.open(t)
	err := d.runInWorker(t.Context(), func(ctx context.Context) error {
		s, err := d.store.table.set(guidA)
		if err != nil {
			return err
		}
		next := d.store.table
		next.entries = append([]entry{s.first, s.pieces[1].entry}, next.entries[3:]...)
		return d.store.drop(ctx, next, s.pieces[0].index)
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	l.removePartitions(t)
	d = l.open(t)
	ctx := withoutLogs(t)
	v, _ := ptr(d.Snapshot()).Volume(guidA)
	if !strings.Contains(v.Incomplete, "piece 1") || v.Device != "" || v.NotAttached == "" {
		t.Errorf("%+v", v)
	}
	for what, err := range map[string]error{
		"Create":   second(d.Create(ctx, CreateOptions{Partition: guidA, Extent: at[0], Pieces: at[1:]})),
		"Grow":     second(d.Grow(ctx, guidA, 12*units.MiB)),
		"AddPiece": second(d.AddPiece(ctx, guidA, 2, extentMiB(28, 1))),
		"Attach":   second(d.Attach(ctx, guidA, Partition)),
		"Move":     second(d.Move(ctx, MoveOptions{Partition: guidA, Copy: guidC, Extent: extentMiB(24, 7)})),
	} {
		if !errors.Is(err, ErrIncomplete) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := d.Wipe(ctx, guidA, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := d.Snapshot(); len(s.Volumes) != 0 || !l.holdsZeros(t, at[0]) || !l.holdsZeros(t, at[2]) {
		t.Errorf("after the wipe: %+v", s)
	}
}

// TestMovePieces moves a volume of three pieces into one, on its disk and to another one. It asserts that the bytes are
// those of the pieces in their order, that the pieces keep their space as one volume in phase Wiping or Moved, and that
// its wipe frees all of it, whatever progress an earlier wipe left in their slots.
func TestMovePieces(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		l, other := initialized(t, 64*units.MiB, 512), initialized(t, 64*units.MiB, 512)
		at := threePieces()
		putPieces(t, l, at)
		var want []byte
		for i, e := range at {
			piece := bytes.Repeat([]byte{byte(i + 1)}, int(e.Len()))
			l.writeAt(t, piece, e.Start)
			want = append(want, piece...)
		}
		d, target := l.open(t), other.open(t)
		ctx := withoutLogs(t)
		// What a wipe of an earlier place with these GUIDs has left.
		err := d.runInWorker(ctx, func(context.Context) error {
			s, err := d.store.table.set(guidA)
			if err != nil {
				return err
			}
			p := s.pieces[0]
			p.guid = guids.PieceID(c2, p.number)
			full := p.extent.Len()
			err = d.writeSlotProven(p.entry, slot{wipe: WipeSettings{Policy: WipeOverwrite}, progress: progress{methodOverwrite, full, full}})
			delete(d.slots, p.guid)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		place, phase := extentMiB(30, 10), Wiping
		var v Volume
		if elsewhere {
			phase = Moved
			v, err = d.MoveTo(ctx, target, MoveToOptions{Partition: guidA, Copy: c3, Left: c2, Extent: place})
		} else {
			v, err = d.Move(ctx, MoveOptions{Partition: guidA, Copy: c2, Extent: place})
		}
		if err != nil {
			t.Fatal(err)
		}
		if v.Extent != place || len(v.Pieces) != 0 || v.Incomplete != "" || v.Phase != Formatted || v.Attachment != Partition || v.Note != "of a" {
			t.Errorf("moved: %+v", v)
		}
		if got := readContent(t, v); !bytes.Equal(got[:len(want)], want) || !allZero(got[len(want):]) {
			t.Error("the volume does not hold the bytes of its pieces in their order")
		}
		old, _ := ptr(d.Snapshot()).Volume(c2)
		if old.Phase != phase || old.Incomplete != "" || old.Length() != 9*units.MiB || len(old.Pieces) != 2 || old.Ephemeral != v.Ephemeral {
			t.Errorf("the old place: %+v", old)
		}
		d.Close()
		d = l.open(t)
		if _, err := d.Wipe(ctx, c2, WipeOptions{Policy: WipeOverwrite}); err != nil {
			t.Fatal(err)
		}
		for _, e := range at {
			if !l.holdsZeros(t, e) || !d.Snapshot().Free.Contains(e) {
				t.Errorf("%v is not free, or not zero", e)
			}
		}
	}
}
