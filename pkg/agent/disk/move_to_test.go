package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// movedToOther are options to move volume a to another disk.
func movedToOther(start, length int64) MoveToOptions {
	return MoveToOptions{Partition: guidA, Copy: c2, Left: guidLeft, Extent: extentMiB(start, length)}
}

// twoDisks are two disks of the same sector size.
func twoDisks(t *testing.T, size int64, sector int) (source, target *loopDisk) {
	t.Helper()
	return initialized(t, size, sector), initialized(t, size, sector)
}

// TestMoveTo asserts that a mounted volume is not moved to another disk. An unmounted one is there with its content and
// note, and has grown. The place that it has left has no device, and is wiped under the volume's policy. Both disks
// come back the same after a restart.
func TestMoveTo(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "e2fsck")
	bothSectors(t, func(t *testing.T, sector int) {
		a, b := twoDisks(t, 128*units.MiB, sector)
		fillWithData(t, b, extentMiB(2, 120))
		source, target := a.open(t), b.open(t)
		ctx := t.Context()
		if _, err := target.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(2, 1)}); err != nil {
			t.Fatal(err)
		}
		v := formattedVolume(t, source, 2, 40)
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
		mnt := mountVolume(t, v, "ext4")
		if _, err := source.MoveTo(withoutLogs(t), target, movedToOther(60, 50)); !errors.Is(err, ErrInUse) {
			t.Fatalf("MoveTo of a mounted volume: %v", err)
		}
		if len(target.Snapshot().Volumes) != 1 {
			t.Fatalf("after a refused MoveTo the target has %+v", target.Snapshot().Volumes)
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
		before := readContent(t, v)
		o := movedToOther(60, 50)
		var done int64
		o.Progress = func(now int64) { done = max(done, now) }
		moved, err := source.MoveTo(ctx, target, o)
		if err != nil {
			t.Fatal(err)
		}
		want := v
		want.Extent, want.Index, want.Device = extentMiB(60, 50), 2, b.path+"p2"
		if !reflect.DeepEqual(moved, want) || done != 50*units.MiB {
			t.Errorf("moved: %+v, want %+v; %d bytes were done", moved, want, done)
		}
		mustHold(t, moved, before)
		if again, err := source.MoveTo(ctx, target, o); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("MoveTo once more: %+v, %v", again, err)
		}
		wantLeft := Volume{Partition: guidLeft, Name: v.Name, Extent: v.Extent, Phase: Moved, Ephemeral: true, Wipe: v.Wipe, Index: 1}
		if left, _ := ptr(source.Snapshot()).Volume(guidLeft); !reflect.DeepEqual(left, wantLeft) {
			t.Errorf("the volume has left %+v, want %+v", left, wantLeft)
		}
		if p := a.partitions(t); p[1] != (partition{}) {
			t.Errorf("the kernel has %v", p)
		}
		if err := source.MarkFormatted(ctx, guidLeft); !errors.Is(err, ErrInUse) {
			t.Errorf("the place that the volume has left becomes a volume: %v", err)
		}
		verifyTable(t, a.path)
		verifyTable(t, b.path)
		source.Close()
		target.Close()
		a.removePartitions(t)
		b.removePartitions(t)
		source, target = a.open(t), b.open(t)
		if now, _ := ptr(target.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, want) {
			t.Errorf("after a restart: %+v, want %+v", now, want)
		}
		if left, _ := ptr(source.Snapshot()).Volume(guidLeft); !reflect.DeepEqual(left, wantLeft) {
			t.Errorf("after a restart the volume has left %+v, want %+v", left, wantLeft)
		}
		testenv.Run(t, "e2fsck", "-f", "-n", moved.Device)
		if w, err := source.Wipe(ctx, guidLeft, WipeOptions{}); err != nil || w.Policy != WipeOverwrite {
			t.Errorf("wiping what the volume has left: %+v, %v", w, err)
		}
		if raw, err := os.ReadFile(a.image); err != nil || !allZero(raw[2*units.MiB:42*units.MiB]) || len(source.Snapshot().Volumes) != 0 {
			t.Errorf("something is left in the old place: %v, %+v", err, source.Snapshot().Volumes)
		}
		// And back: what the first move has left on the disk does not prevent the second.
		back := movedToOther(10, 60)
		if moved, err := target.MoveTo(ctx, source, back); err != nil || moved.Extent != back.Extent {
			t.Errorf("moved back: %+v, %v", moved, err)
		}
	})
}

// TestMoveToRefused asserts which moves to another disk are refused, and that they change nothing and leave the volume
// attached.
func TestMoveToRefused(t *testing.T) {
	a, b := twoDisks(t, 64*units.MiB, 512)
	source, target := a.open(t), b.open(t)
	ctx := withoutLogs(t)
	v := formattedVolume(t, source, 2, 8)
	if _, err := source.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(12, 4)}); err != nil {
		t.Fatal(err)
	}
	if _, err := target.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(20, 4), Raw: true}); err != nil {
		t.Fatal(err)
	}
	closed := initialized(t, 64*units.MiB, 512).open(t)
	closed.Close()
	full := initialized(t, 8*units.MiB, 512).open(t)
	larger := initialized(t, 64*units.MiB, 4096).open(t)
	reserved := movedToOther(30, 8)
	reserved.Partition = guidB
	missing := movedToOther(30, 8)
	missing.Partition = c3
	same := movedToOther(30, 8)
	same.Left = same.Copy
	negative := movedToOther(30, 8)
	negative.TargetRate = -1
	taken := movedToOther(30, 8)
	taken.Copy = guidC
	for _, test := range []struct {
		name string
		to   *Disk
		o    MoveToOptions
		is   error
		says string
	}{
		{"to its own disk", source, movedToOther(30, 8), nil, "is on that disk"},
		{"to a place that is taken", target, movedToOther(22, 8), ErrOverlap, ""},
		{"to a place that is too short", target, movedToOther(30, 7), nil, "never shrinks"},
		{"behind the end", full, movedToOther(4, 8), ErrOverlap, ""},
		{"to a disk of larger sectors", larger, movedToOther(30, 8), nil, "sectors of its size"},
		{"to a closed disk", closed, movedToOther(30, 8), ErrOutOfService, ""},
		{"of a Reserved volume", target, reserved, nil, "Reserved"},
		{"of no volume", target, missing, ErrNotFound, ""},
		{"with one GUID for two places", target, same, nil, "other GUIDs"},
		{"with a negative rate", target, negative, nil, "negative"},
		{"with a copy that is another volume", target, taken, nil, "not the target"},
	} {
		_, err := source.MoveTo(ctx, test.to, test.o)
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
		if now, _ := ptr(source.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) || len(target.Snapshot().Volumes) != 1 {
			t.Errorf("%s: the volume is %+v, and the target has %+v", test.name, now, target.Snapshot().Volumes)
		}
	}
}

// TestMoveToCut asserts that a move to another disk that is cut leaves the volume attached, also if either disk is
// closed meanwhile. The next try compares what there is, and ends the move although the volume has changed.
func TestMoveToCut(t *testing.T) {
	for _, cut := range []string{"canceled", "source closed", "target closed"} {
		t.Run(cut, func(t *testing.T) {
			a, b := twoDisks(t, 128*units.MiB, 512)
			source, target := a.open(t), b.open(t)
			v := formattedVolume(t, source, 2, 40)
			random := rand.New(rand.NewPCG(1, 2))
			randomContent(t, random, v)
			ctx, cancel := context.WithCancel(withoutLogs(t))
			o := movedToOther(60, 40)
			closed := make(chan struct{})
			o.Progress = func(done int64) {
				if done != 8*units.MiB {
					return
				}
				go func() {
					defer close(closed)
					switch cut {
					case "canceled":
						cancel()
					case "source closed":
						source.Close()
					case "target closed":
						target.Close()
					}
				}()
				// Close waits for the copy.
				select {
				case <-source.stop:
				case <-target.stop:
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
			}
			if _, err := source.MoveTo(ctx, target, o); err == nil {
				t.Fatal("the move is not cut")
			}
			<-closed
			if cut == "source closed" {
				source = a.open(t)
			}
			if cut == "target closed" {
				target = b.open(t)
			}
			now, _ := ptr(source.Snapshot()).Volume(guidA)
			if !reflect.DeepEqual(now, v) {
				t.Fatalf("the volume is %+v", now)
			}
			if c, _ := ptr(target.Snapshot()).Volume(c2); c.Phase != Arriving || c.Device != "" {
				t.Fatalf("the copy is %+v", c)
			}
			data := randomContent(t, random, v)
			o.Progress = nil
			if _, err := source.MoveTo(withoutLogs(t), target, movedToOther(20, 40)); !errors.Is(err, ErrOverlap) {
				t.Fatalf("to another place before the copy is wiped: %v", err)
			}
			moved, err := source.MoveTo(t.Context(), target, o)
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, moved, data)
		})
	}
}

// TestMoveToGivenUp asserts that a copy can be wiped, and that the volume stays.
func TestMoveToGivenUp(t *testing.T) {
	a, b := twoDisks(t, 128*units.MiB, 512)
	source, target := a.open(t), b.open(t)
	v := formattedVolume(t, source, 2, 40)
	data := randomContent(t, rand.New(rand.NewPCG(1, 2)), v)
	ctx, cancel := context.WithCancel(withoutLogs(t))
	o := movedToOther(60, 40)
	o.Progress = func(int64) { cancel() }
	if _, err := source.MoveTo(ctx, target, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := target.Wipe(t.Context(), c2, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(target.Snapshot().Volumes) != 0 {
		t.Errorf("the target has %+v", target.Snapshot().Volumes)
	}
	mustHold(t, v, data)
}

// TestMoveToEndsAfterCommit asserts that a volume that has left its disk is attached nowhere while the target is away,
// and that the next try makes the copy the volume, without copying.
func TestMoveToEndsAfterCommit(t *testing.T) {
	a, b := twoDisks(t, 128*units.MiB, 512)
	source, target := a.open(t), b.open(t)
	v := formattedVolume(t, source, 2, 40)
	data := randomContent(t, rand.New(rand.NewPCG(1, 2)), v)
	o := movedToOther(60, 40)
	ctx := withoutLogs(t)
	if err := source.depart(ctx, target, o); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*loopDisk{a, b} {
		if p := l.partitions(t); len(p) != 1 {
			t.Errorf("the kernel has %v", p)
		}
	}
	target.Close()
	if _, err := source.MoveTo(ctx, target, o); !errors.Is(err, ErrOutOfService) {
		t.Errorf("MoveTo without the target: %v", err)
	}
	source.Close()
	// In the other order.
	target, source = b.open(t), a.open(t)
	if got := append(volumes(source.Snapshot()), volumes(target.Snapshot())...); strings.Join(got, " ") != "1:Moved@2+40 c:Arriving@60+40" {
		t.Errorf("after a restart: %v", got)
	}
	o.Progress = func(int64) { t.Error("it is copied again") }
	moved, err := source.MoveTo(ctx, target, o)
	if err != nil {
		t.Fatal(err)
	}
	want := v
	want.Extent, want.Device = o.Extent, b.path+"p1"
	if !reflect.DeepEqual(moved, want) {
		t.Errorf("moved: %+v, want %+v", moved, want)
	}
	mustHold(t, moved, data)
}

// TestMoveToRate asserts that a move to another disk keeps to the rate of each disk.
func TestMoveToRate(t *testing.T) {
	for _, limited := range []string{"source", "target"} {
		a, b := twoDisks(t, 64*units.MiB, 512)
		source, target := a.open(t), b.open(t)
		testenv.WriteDevice(t, formattedVolume(t, source, 2, 8).Device, bytes.Repeat([]byte{1}, 8<<20))
		o := movedToOther(20, 8)
		// A byte is read once from the source, and written and read on the target.
		least := 7 * 125 * time.Millisecond
		if limited == "source" {
			o.Rate = 8 * units.MiB
		} else {
			o.TargetRate = 16 * units.MiB
		}
		begin := time.Now()
		if _, err := source.MoveTo(t.Context(), target, o); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < least {
			t.Errorf("with a limit of the %s it took %v, want %v at least", limited, took, least)
		}
	}
}

// TestMoveToHeld asserts that no call gives a volume its device while it is copied to another disk, and that a policy
// that it gets meanwhile goes with it.
func TestMoveToHeld(t *testing.T) {
	a, b := twoDisks(t, 64*units.MiB, 512)
	source, target := a.open(t), b.open(t)
	ctx := withoutLogs(t)
	v := formattedVolume(t, source, 2, 4)
	o := movedToOther(40, 4)
	o.Progress = func(int64) {
		if _, err := source.Create(ctx, CreateOptions{Partition: guidA, Name: "default/a", Extent: v.Extent}); !errors.Is(err, ErrInUse) {
			t.Errorf("Create of a volume that is copied: %v", err)
		}
		if _, err := target.Create(ctx, CreateOptions{Partition: c2, Name: "default/a", Extent: o.Extent}); !errors.Is(err, ErrInUse) {
			t.Errorf("Create of the copy: %v", err)
		}
		if err := target.MarkFormatted(ctx, c2); !errors.Is(err, ErrInUse) {
			t.Errorf("MarkFormatted of the copy: %v", err)
		}
		if err := source.SetWipe(ctx, guidA, WipeSettings{Policy: WipeZero}); err != nil {
			t.Error(err)
		}
		for _, l := range []*loopDisk{a, b} {
			if p := l.partitions(t); len(p) != 1 {
				t.Errorf("the kernel has %v", p)
			}
		}
		if s := source.Snapshot(); s.Volumes[0].Device != "" || s.Validate() != nil {
			t.Errorf("meanwhile: %+v", s.Volumes)
		}
	}
	moved, err := source.MoveTo(ctx, target, o)
	if err != nil {
		t.Fatal(err)
	}
	left, _ := ptr(source.Snapshot()).Volume(guidLeft)
	if want := (WipeSettings{Policy: WipeZero}); moved.Wipe != want || left.Wipe != want || moved.Note != v.Note {
		t.Errorf("moved: %+v, left: %+v", moved, left)
	}
}

// TestMoveToShown asserts that a volume does not leave its disk if another program made the kernel show it or its copy
// while it was copied. The next move finds what was written.
func TestMoveToShown(t *testing.T) {
	for _, shown := range []string{"the volume", "the copy"} {
		t.Run(shown, func(t *testing.T) {
			a, b := twoDisks(t, 64*units.MiB, 512)
			source, target := a.open(t), b.open(t)
			v := formattedVolume(t, source, 2, 20)
			data := randomContent(t, rand.New(rand.NewPCG(1, 2)), v)
			o := movedToOther(40, 20)
			o.Progress = func(done int64) {
				switch {
				case done != 16*units.MiB:
				case shown == "the copy":
					b.addPartition(t, 1, o.Extent)
					testenv.WriteDevice(t, b.path+"p1", bytes.Repeat([]byte("x"), 8192))
				default:
					a.addPartition(t, 1, v.Extent)
					copy(data[4096:], "written meanwhile")
					testenv.WriteDevice(t, a.path+"p1", data)
				}
			}
			if _, err := source.MoveTo(withoutLogs(t), target, o); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another program") {
				t.Fatalf("the move: %v", err)
			}
			if now, _ := ptr(source.Snapshot()).Volume(guidA); !reflect.DeepEqual(now, v) {
				t.Fatalf("then: %+v", now)
			}
			moved, err := source.MoveTo(withoutLogs(t), target, movedToOther(40, 20))
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, moved, data)
		})
	}
}
