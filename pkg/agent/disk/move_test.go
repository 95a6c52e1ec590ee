package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// movedTo are options to move volume a. Its copy is c2.
func movedTo(start, length int64) MoveOptions {
	return MoveOptions{Partition: guidA, Copy: c2, Extent: extentMiB(start, length)}
}

// formattedVolume makes volume a with a note, in phase Formatted.
func formattedVolume(t *testing.T, d *Disk, start, length int64) Volume {
	t.Helper()
	v, err := d.Create(t.Context(), CreateOptions{
		Partition: guidA, Name: "default/a", Extent: extentMiB(start, length), Ephemeral: true,
		Note: "of a", Wipe: WipeSettings{Policy: WipeOverwrite, Rate: 1 << 40},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.MarkFormatted(t.Context(), guidA); err != nil {
		t.Fatal(err)
	}
	v.Phase = Formatted
	return v
}

// randomContent writes random bytes to a volume, with zeros in between, and returns them.
func randomContent(t *testing.T, random *rand.Rand, v Volume) []byte {
	t.Helper()
	data := make([]byte, v.Extent.Len())
	for at := int64(0); at < int64(len(data)); at += 512 << 10 {
		if random.IntN(3) > 0 {
			fillRandom(random, data[at:at+512<<10])
		}
	}
	testenv.WriteDevice(t, v.Device, data)
	return data
}

func fillRandom(random *rand.Rand, b []byte) {
	for i := 0; i < len(b); i += 8 {
		n := random.Uint64()
		for k := range min(8, len(b)-i) {
			b[i+k] = byte(n >> (8 * k))
		}
	}
}

// mustHold asserts that a volume shows the data, and zeros behind it.
func mustHold(t *testing.T, v Volume, data []byte) {
	t.Helper()
	if got := readContent(t, v); !bytes.Equal(got[:len(data)], data) || !allZero(got[len(data):]) {
		t.Fatalf("%+v does not hold its data and zeros", v)
	}
}

// TestMove asserts that a mounted volume is not moved, and that an unmounted one has its files at the new place. There
// it has grown. The old place is wiped under the volume's policy.
func TestMove(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "e2fsck")
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 256*units.MiB, sector)
		fillWithData(t, l, extentMiB(2, 253))
		d := l.open(t)
		ctx := t.Context()
		v := formattedVolume(t, d, 2, 60)
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		mnt := mountVolume(t, v, "ext4")
		content := bytes.Repeat([]byte("kept"), 1<<20)
		if err := os.WriteFile(filepath.Join(mnt, "file"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "sync", "--file-system", mnt)
		d.waitIdle(t)
		table := l.tables(t)
		if _, err := d.Move(withoutLogs(t), movedTo(100, 80)); !errors.Is(err, ErrInUse) {
			t.Fatalf("Move of a mounted volume: %v", err)
		}
		if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) || len(d.Snapshot().Volumes) != 1 || !bytes.Equal(l.tables(t), table) {
			t.Fatalf("after a refused Move: %+v", d.Snapshot().Volumes)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		before := readContent(t, v)
		var done int64
		o := movedTo(100, 80)
		o.Progress = func(now int64) { done = max(done, now) }
		moved, err := d.Move(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		want := v
		want.Extent, want.Index, want.Device = extentMiB(100, 80), 2, l.path+"p2"
		if !reflect.DeepEqual(moved, want) || done != 80*units.MiB {
			t.Errorf("moved: %+v, want %+v; %d bytes were done", moved, want, done)
		}
		mustHold(t, moved, before)
		if again, err := d.Move(ctx, o); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("Move once more: %+v, %v", again, err)
		}
		left, _ := ptr(d.Snapshot()).Volume(c2)
		if wantLeft := (Volume{Partition: c2, Name: v.Name, Extent: v.Extent, Phase: Wiping, Ephemeral: true, Wipe: v.Wipe, Index: 1}); !reflect.DeepEqual(left, wantLeft) {
			t.Errorf("the old place is %+v, want %+v", left, wantLeft)
		}
		if p := l.partitions(t); p[1] != (partition{}) || p[2].extent != want.Extent {
			t.Errorf("the kernel has %v", p)
		}
		verifyTable(t, l.path)
		d.Close()
		l.removePartitions(t)
		d = l.open(t)
		if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, want) {
			t.Errorf("after a restart: %+v, want %+v", now, want)
		}
		testenv.Run(t, "e2fsck", "-f", "-n", moved.Device)
		mnt = mountVolume(t, moved, "ext4")
		if got, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the file is not what it was: %v", err)
		}
		if w, err := d.Wipe(ctx, c2, WipeOptions{}); err != nil || w.Policy != WipeOverwrite || w.Extent != v.Extent {
			t.Errorf("wiping the old place: %+v, %v", w, err)
		}
		if raw, err := os.ReadFile(l.image); err != nil || !allZero(raw[2*units.MiB:62*units.MiB]) {
			t.Errorf("something is left in the old place: %v", err)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
		verifyTable(t, l.path)
	})
}

// tables are both copies of the table and the meta partition, as the image has them.
func (l *loopDisk) tables(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(raw[:2*units.MiB], raw[int64(len(raw))-units.MiB:])
}

// TestMoveRefused asserts which moves are refused, and that they change nothing.
func TestMoveRefused(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	formattedVolume(t, d, 2, 4)
	for i, guid := range []string{guidB, guidC} {
		if _, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(10+4*int64(i), 4)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: c3, Extent: extentMiB(18, 12), Raw: true}); err != nil {
		t.Fatal(err)
	}
	cut, cancel := context.WithCancel(ctx)
	l.useMethods(method{"cut", units.MiB, func(*blockDevice, int64, int64) error { cancel(); return errInjected }})
	if _, err := d.Wipe(cut, guidC, WipeOptions{}); err == nil {
		t.Fatal("the wipe is not cut")
	}
	moving := MoveOptions{Partition: c3, Copy: c4, Extent: extentMiB(34, 12)}
	stopped, stop := context.WithCancel(ctx)
	moving.Progress = func(int64) { stop() }
	if _, err := d.Move(stopped, moving); !errors.Is(err, context.Canceled) {
		t.Fatalf("a move that is cut: %v", err)
	}
	d.waitIdle(t)
	before, snapshot := l.hash(t), d.Snapshot()
	for _, test := range []struct {
		name string
		o    MoveOptions
		want error
		says string
	}{
		{"no such volume", MoveOptions{Partition: c5, Copy: c2, Extent: extentMiB(50, 4)}, ErrNotFound, ""},
		{"Reserved", MoveOptions{Partition: guidB, Copy: c2, Extent: extentMiB(50, 4)}, nil, "Reserved"},
		{"Wiping", MoveOptions{Partition: guidC, Copy: c2, Extent: extentMiB(50, 4)}, ErrInUse, "wiped"},
		{"Copying", MoveOptions{Partition: c4, Copy: c2, Extent: extentMiB(50, 4)}, ErrInUse, "target"},
		{"into a volume", movedTo(9, 4), ErrOverlap, ""},
		{"into its own place", movedTo(3, 4), ErrOverlap, ""},
		{"into a target", movedTo(33, 4), ErrOverlap, ""},
		{"not aligned", MoveOptions{Partition: guidA, Copy: c2, Extent: extent.New(50*units.MiB+512, 4*units.MiB)}, ErrOverlap, "aligned"},
		{"shorter", movedTo(50, 3), nil, "shrinks"},
		{"behind the end", movedTo(61, 4), ErrOverlap, ""},
		{"without a copy", MoveOptions{Partition: guidA, Extent: extentMiB(50, 4)}, nil, "GUID"},
		{"its own GUID", MoveOptions{Partition: guidA, Copy: guidA, Extent: extentMiB(50, 4)}, nil, "GUID"},
		{"the GUID of a volume", MoveOptions{Partition: guidA, Copy: guidB, Extent: extentMiB(50, 4)}, nil, "not the target"},
		{"the GUID of a wiped volume", MoveOptions{Partition: guidA, Copy: guidC, Extent: extentMiB(50, 4)}, ErrInUse, "wiped"},
		{"the copy is elsewhere", MoveOptions{Partition: c3, Copy: c4, Extent: extentMiB(50, 4)}, ErrOverlap, "is being moved to"},
		{"a negative rate", MoveOptions{Partition: guidA, Copy: c2, Extent: extentMiB(50, 4), Rate: -1}, nil, "negative"},
	} {
		_, err := d.Move(ctx, test.o)
		if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
		if now := d.Snapshot(); !reflect.DeepEqual(now.Volumes, snapshot.Volumes) || l.hash(t) != before {
			t.Fatalf("%s: it changed something: %+v", test.name, now.Volumes)
		}
	}
	// A volume that has grown since does not fit into its copy.
	l.wipeMethods.zero = defaultWipeMethods().zero
	if _, err := d.Grow(ctx, c3, 13*units.MiB); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Move(ctx, MoveOptions{Partition: c3, Copy: c4, Extent: extentMiB(34, 12)}); !errors.Is(err, ErrOverlap) || !strings.Contains(err.Error(), "has grown") {
		t.Errorf("of a volume that has grown: %v", err)
	}
	if _, err := d.Wipe(ctx, c4, WipeOptions{}); err != nil {
		t.Fatalf("giving up a move: %v", err)
	}
	if _, found := ptr(d.Snapshot()).Volume(c4); found {
		t.Error("the copy is still there")
	}
	if _, err := d.Move(ctx, movedTo(34, 20)); err != nil {
		t.Errorf("a move that is possible: %v", err)
	}
}

// TestMoveHeld asserts that a move waits for a program that only looks, and refuses if a process keeps the device open.
func TestMoveHeld(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	v := formattedVolume(t, d, 2, 4)
	d.waitIdle(t)
	for _, flags := range []int{unix.O_EXCL, 0} {
		holder, err := os.OpenFile(v.Device, os.O_RDONLY|flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := l.hash(t)
		if _, err := d.Move(ctx, movedTo(40, 4)); !errors.Is(err, ErrInUse) {
			t.Errorf("Move of a volume that is open: %v", err)
		}
		if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) || l.hash(t) != before {
			t.Errorf("it changed something: %+v", now)
		}
		holder.Close()
	}
	looker, err := os.Open(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		// Long enough that the first tries find it open, if they come before.
		_ = await(ctx, busyTimeout/8, func() (bool, error) { return false, nil })
		looker.Close()
	}()
	if _, err := d.Move(ctx, movedTo(40, 4)); err != nil {
		t.Errorf("Move of a volume that was looked at: %v", err)
	}
}

// TestMoveResumes cuts a move at random points and changes the volume in between. It asserts that the volume can be
// used after each cut, that a restart keeps the copy, and that in the end the volume has its last content.
func TestMoveResumes(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		random := rand.New(rand.NewPCG(13, uint64(sector)))
		l := initialized(t, 128*units.MiB, sector)
		fillWithData(t, l, extentMiB(2, 125))
		d := l.open(t)
		v := formattedVolume(t, d, 3, 20)
		data := randomContent(t, random, v)
		for try := range 8 {
			ctx, cancel := context.WithCancel(withoutLogs(t))
			o, stopAt := movedTo(60, 23), random.Int64N(20*units.MiB)
			o.Progress = func(done int64) {
				if done > stopAt {
					cancel()
				}
			}
			if _, err := d.Move(ctx, o); !errors.Is(err, context.Canceled) {
				t.Fatalf("try %d: %v", try, err)
			}
			cancel()
			if random.IntN(2) == 0 {
				d.Close()
				if random.IntN(2) == 0 {
					l.removePartitions(t)
				}
				d = l.open(t)
			}
			now, _ := ptr(d.Snapshot()).Volume(guidA)
			if !reflect.DeepEqual(now, v) {
				t.Fatalf("try %d: the volume is %+v, want %+v", try, now, v)
			}
			if c, _ := ptr(d.Snapshot()).Volume(c2); c.Phase != Copying || c.Device != "" || c.Extent != o.Extent || c.Wipe != v.Wipe || c.Note != "" {
				t.Fatalf("try %d: the copy is %+v", try, c)
			}
			mustHold(t, v, data)
			// The volume is used meanwhile.
			at := random.Int64N(19) * units.MiB
			if random.IntN(3) == 0 {
				clear(data[at : at+units.MiB])
			} else {
				fillRandom(random, data[at:at+8192])
			}
			testenv.WriteDevice(t, v.Device, data)
		}
		moved, err := d.Move(t.Context(), movedTo(60, 23))
		if err != nil {
			t.Fatal(err)
		}
		mustHold(t, moved, data)
		if err := wipeVolume(t.Context(), d, c2); err != nil {
			t.Error(err)
		}
		verifyTable(t, l.path)
	})
}

// TestMoveAfterFailedFlush asserts that a resumed move writes what differs, but everything after a flush has failed:
// the disk may show bytes that it will lose.
func TestMoveAfterFailedFlush(t *testing.T) {
	for _, flushFailed := range []bool{false, true} {
		l := initialized(t, 64*units.MiB, 512)
		d := l.open(t)
		v := formattedVolume(t, d, 2, 20)
		data := bytes.Repeat([]byte("not zero"), 20<<17)
		testenv.WriteDevice(t, v.Device, data)
		ctx, cancel := context.WithCancel(withoutLogs(t))
		o := movedTo(40, 20)
		o.Progress = func(done int64) {
			if done == 16*units.MiB {
				cancel()
			}
		}
		if _, err := d.Move(ctx, o); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := d.cutMove(withoutLogs(t), o, &copyJob{flushFailed: flushFailed}, errInjected); err != nil {
			t.Fatal(err)
		}
		before := l.writtenBytes(t)
		moved, err := d.Move(t.Context(), movedTo(40, 20))
		if err != nil {
			t.Fatal(err)
		}
		mustHold(t, moved, data)
		least, most := 4*units.MiB, 5*units.MiB
		if flushFailed {
			least, most = 20*units.MiB, 21*units.MiB
		}
		if n := l.writtenBytes(t) - before; n < least || n > most {
			t.Errorf("a flush has failed: %t; %d bytes were written, and should be %d to %d", flushFailed, n, least, most)
		}
	}
}

// TestMoveIntoZeroedSpace asserts that the end of a target that is known to be zero is not zeroed again, and that its
// space counts as zeroed no more.
func TestMoveIntoZeroedSpace(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	fillWithData(t, l, extentMiB(2, 61))
	d := l.open(t)
	ctx := t.Context()
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(40, 8)}); err != nil {
		t.Fatal(err)
	}
	if err := wipeVolume(ctx, d, guidB); err != nil {
		t.Fatal(err)
	}
	v := formattedVolume(t, d, 2, 4)
	data := bytes.Repeat([]byte("not zero"), 4<<17)
	testenv.WriteDevice(t, v.Device, data)
	counted := l.wipeMethods.zero[0]
	calls := countCalls(&counted)
	l.useMethods(counted)
	moved, err := d.Move(ctx, movedTo(40, 8))
	if err != nil || len(*calls) > 0 {
		t.Fatalf("%v, zeroed at %v", err, *calls)
	}
	mustHold(t, moved, data)
	if _, err := d.Wipe(ctx, guidA, WipeOptions{Policy: WipeNone}); err != nil {
		t.Fatal(err)
	}
	if raw, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(40, 8), Raw: true}); err != nil || !allZero(readContent(t, raw)) {
		t.Errorf("a raw volume there holds what the moved one held: %v", err)
	}
}

// TestMoveIntoSpaceBeingZeroed asserts that a volume does not move into space that is being zeroed for another one.
func TestMoveIntoSpaceBeingZeroed(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	formattedVolume(t, d, 2, 4)
	all := l.wipeMethods.zero
	var during error
	l.useMethods(method{"asking", units.MiB, func(dev *blockDevice, off, n int64) error {
		_, during = d.Move(ctx, movedTo(42, 4))
		return all[0].do(dev, off, n)
	}})
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(40, 4), Raw: true}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(during, ErrOverlap) {
		t.Errorf("Move while space was zeroed: %v", during)
	}
}

// TestCloseDuringMove asserts that Close ends a move and waits for it, and that the next agent moves the volume.
func TestCloseDuringMove(t *testing.T) {
	l := initialized(t, 128*units.MiB, 512)
	d := l.open(t)
	v := formattedVolume(t, d, 2, 40)
	data := randomContent(t, rand.New(rand.NewPCG(9, 1)), v)
	closed := make(chan error, 1)
	var copied int64
	o := movedTo(60, 40)
	o.Progress = func(done int64) {
		copied = done
		if done > 8*units.MiB {
			return
		}
		go func() { closed <- d.Close() }()
		<-d.stopped
		if err := await(t.Context(), 100*time.Millisecond, func() (bool, error) { return len(closed) > 0, nil }); !errors.Is(err, errTimeout) {
			t.Errorf("Close did not wait for the copy: %v", err)
		}
	}
	if _, err := d.Move(withoutLogs(t), o); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrOutOfService) {
		t.Errorf("a move of a disk that is closed: %v", err)
	}
	if err := <-closed; err != nil || copied == 40*units.MiB {
		t.Errorf("%v, %d bytes were copied", err, copied)
	}
	d = l.open(t)
	if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) {
		t.Errorf("then: %+v", now)
	}
	moved, err := d.Move(t.Context(), movedTo(60, 40))
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, moved, data)
}

// TestMoveRate asserts that the rate applies to reading, writing and reading back.
func TestMoveRate(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	v := formattedVolume(t, d, 2, 2)
	testenv.WriteDevice(t, v.Device, bytes.Repeat([]byte("not zero"), 2<<17))
	o := movedTo(40, 2)
	o.Rate = 20 * units.MiB
	begin := time.Now()
	if _, err := d.Move(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	// Six chunks of 1 MiB, of which the first does not wait.
	if took := time.Since(begin); took < 5*time.Second/20 {
		t.Errorf("2 MiB at 20 MiB a second took %v", took)
	}
}

// TestMoveOfManyVolumes asserts that a volume moves between an entry with a number of the kernel's and one without.
func TestMoveOfManyVolumes(t *testing.T) {
	testenv.RemoveNewLoops(t)
	l := initialized(t, 512*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	v := formattedVolume(t, d, 2, 10)
	data := randomContent(t, rand.New(rand.NewPCG(7, 8)), v)
	for i := range int64(MetaEntry - 2) {
		if _, err := d.Create(ctx, CreateOptions{Partition: uuid.NewString(), Extent: extentMiB(12+i, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	up, err := d.Move(ctx, movedTo(400, 11))
	if err != nil || up.Index != MetaEntry+1 || !strings.HasPrefix(up.Device, "/dev/loop") {
		t.Fatalf("up: %+v, %v", up, err)
	}
	mustHold(t, up, data)
	if err := wipeVolume(ctx, d, c2); err != nil {
		t.Fatal(err)
	}
	down, err := d.Move(ctx, movedTo(420, 12))
	if err != nil || down.Index != 1 || down.Device != l.path+"p1" {
		t.Fatalf("down: %+v, %v", down, err)
	}
	mustHold(t, down, data)
	if loops, err := d.device.findLoops(); err != nil || len(loops.found) > 0 {
		t.Errorf("loop devices are left: %v, %v", loops, err)
	}
}

// TestMovingVolumeIsNotAttached asserts that no call gives a volume its device back while it is copied.
func TestMovingVolumeIsNotAttached(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	v := formattedVolume(t, d, 2, 4)
	o := movedTo(40, 4)
	called := false
	o.Progress = func(int64) {
		if called {
			return
		}
		called = true
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "default/a", Extent: v.Extent}); !errors.Is(err, ErrInUse) {
			t.Errorf("Create of a volume that is copied: %v", err)
		}
		if _, err := d.Create(ctx, CreateOptions{Partition: c2, Name: "default/a", Extent: o.Extent}); !errors.Is(err, ErrInUse) {
			t.Errorf("Create of the copy: %v", err)
		}
		if err := d.MarkFormatted(ctx, c2); !errors.Is(err, ErrInUse) {
			t.Errorf("MarkFormatted of the copy: %v", err)
		}
		if _, err := d.Grow(ctx, c2, 8*units.MiB); !errors.Is(err, ErrInUse) {
			t.Errorf("Grow of the copy: %v", err)
		}
		if err := d.SetWipe(ctx, guidA, WipeSettings{Policy: WipeZero}); err != nil {
			t.Errorf("SetWipe of a volume that is copied: %v", err)
		}
		s := d.Snapshot()
		if got := volumes(s); !slices.Equal(got, []string{"a:Formatted@2+4", "c:Copying@40+4"}) || s.Volumes[0].Device != "" || s.Volumes[1].Device != "" || s.Validate() != nil {
			t.Errorf("meanwhile: %+v", s.Volumes)
		}
		if p := l.partitions(t); len(p) != 1 {
			t.Errorf("the kernel has %v", p)
		}
	}
	moved, err := d.Move(ctx, o)
	if err != nil || !called {
		t.Fatal(err)
	}
	left, _ := ptr(d.Snapshot()).Volume(c2)
	if want := (WipeSettings{Policy: WipeZero}); moved.Wipe != want || left.Wipe != want {
		t.Errorf("moved: %+v, left: %+v", moved, left)
	}
}

// TestMoveOfShownVolume asserts that a volume is not switched to its copy if another program made the kernel show one
// of the two while it was copied. The next move finds what was written.
func TestMoveOfShownVolume(t *testing.T) {
	for name, index := range map[string]int{"the volume": 1, "the copy": 2} {
		t.Run(name, func(t *testing.T) {
			l := initialized(t, 64*units.MiB, 512)
			d := l.open(t)
			v := formattedVolume(t, d, 2, 20)
			data := randomContent(t, rand.New(rand.NewPCG(1, 2)), v)
			o := movedTo(40, 20)
			o.Progress = func(done int64) {
				if done != 16*units.MiB {
					return
				}
				e := map[int]extent.Extent{1: v.Extent, 2: o.Extent}[index]
				l.addPartition(t, index, e)
				copy(data[4096:], "written meanwhile")
				if index == 1 {
					testenv.WriteDevice(t, l.path+"p1", data)
				} else {
					testenv.WriteDevice(t, l.path+"p2", make([]byte, units.MiB))
					copy(data, readContent(t, Volume{Device: l.path + "p1", Extent: v.Extent}))
				}
			}
			if index == 2 {
				// The copy is written to, and the volume is not.
				copied := bytes.Clone(data)
				o.Progress = func(done int64) {
					if done == 16*units.MiB {
						l.addPartition(t, 2, o.Extent)
						testenv.WriteDevice(t, l.path+"p2", bytes.Repeat([]byte("x"), 8192))
					}
				}
				data = copied
			}
			if _, err := d.Move(withoutLogs(t), o); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another program") {
				t.Fatalf("the move: %v", err)
			}
			now, _ := ptr(d.Snapshot()).Volume(guidA)
			if !reflect.DeepEqual(now, v) {
				t.Fatalf("then: %+v", now)
			}
			moved, err := d.Move(withoutLogs(t), movedTo(40, 20))
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, moved, data)
		})
	}
}

// TestOpenWithCopy asserts that a copy has no device after a boot, when the kernel shows all partitions. If a process
// has it open, it is not written to until it is closed.
func TestOpenWithCopy(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	v := formattedVolume(t, d, 2, 20)
	data := randomContent(t, rand.New(rand.NewPCG(5, 6)), v)
	ctx, cancel := context.WithCancel(withoutLogs(t))
	o := movedTo(40, 20)
	o.Progress = func(int64) { cancel() }
	if _, err := d.Move(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	d.Close()
	l.addPartition(t, 2, o.Extent)
	d = l.open(t)
	if p := l.partitions(t); len(p) != 2 || p[2] != (partition{}) {
		t.Errorf("after a boot the kernel has %v", p)
	}
	d.Close()
	l.addPartition(t, 2, o.Extent)
	holder, err := os.OpenFile(l.path+"p2", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	d = l.open(t)
	if s, err := Read(l.path); err != nil || s.Volumes[1].Phase != Copying {
		t.Errorf("Read: %+v, %v", s, err)
	}
	if _, err := d.Move(withoutLogs(t), movedTo(40, 20)); !errors.Is(err, ErrInUse) {
		t.Errorf("Move with an open copy: %v", err)
	}
	if now, _ := ptr(d.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) {
		t.Errorf("then: %+v", now)
	}
	if _, err := holder.WriteAt(bytes.Repeat([]byte("late"), 1024), 4096); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(holder.Sync(), holder.Close()); err != nil {
		t.Fatal(err)
	}
	moved, err := d.Move(t.Context(), movedTo(40, 20))
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, moved, data)
}
