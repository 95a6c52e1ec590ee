package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// smallInterval keeps the progress of wipes every few MiB, and never because of the time.
var smallInterval = interval{3 * units.MiB, time.Hour}

// volumeBeingWiped is a disk of 32 MiB with a volume full of canaries, whose wipes write with overwrite
// and keep their progress often. over are the offsets that they write.
func volumeBeingWiped(t *testing.T) (l *loopDisk, d *Disk, v Volume, over *[]int64) {
	t.Helper()
	l = initialized(t, 32*units.MiB, 512)
	l.wipeMethods.saveInterval = smallInterval
	over = countCalls(&l.wipeMethods.overwrite)
	l.useMethods(l.wipeMethods.overwrite)
	d = l.open(t)
	return l, d, writtenVolume(t, l, d), over
}

// interruptWipe begins a wipe of volume a, and ends it when that many bytes are reported as done.
func interruptWipe(t *testing.T, d *Disk, policy WipePolicy, after int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(withoutLogs(t))
	defer cancel()
	_, err := d.Wipe(ctx, guidA, WipeOptions{Policy: policy, Progress: func(done int64) {
		if done >= after {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("a wipe that is cut short: %v", err)
	}
}

// countCalls replaces a method by one that does the same and notes the offsets.
func countCalls(m *method) *[]int64 {
	offsets := &[]int64{}
	old := *m
	*m = method{old.name, min(old.maxStep, units.MiB), func(d *blockDevice, off, n int64) error {
		*offsets = append(*offsets, off)
		return old.do(d, off, n)
	}}
	return offsets
}

// copyTo is a second disk with the present content of the first: what a crash leaves.
func (l *loopDisk) copyTo(t *testing.T, sector int) *loopDisk {
	t.Helper()
	testenv.Run(t, "sync", l.image)
	src, err := os.Open(l.image)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		t.Fatal(err)
	}
	other := newLoopDisk(t, st.Size(), sector)
	other.wipeMethods = l.wipeMethods
	dst, err := os.OpenFile(other.image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dst.Sync(), dst.Close()); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "blockdev", "--flushbufs", other.path)
	return other
}

// TestWipeResumesAtProgress asserts that after a crash a wipe continues at the progress on the disk, with the same
// method. Under Overwrite, what was zeroed before the crash is read back after it.
func TestWipeResumesAtProgress(t *testing.T) {
	always := overwrite
	for _, test := range []struct {
		name     string
		policy   WipePolicy
		crash    int64 // when that many bytes are reported as done
		from, to int64 // where the first step after the crash may be
		method   string
	}{
		{"Zero", WipeZero, 7 * units.MiB, 6 * units.MiB, 7 * units.MiB, methodPunch},
		{"Overwrite, writing", WipeOverwrite, 4 * units.MiB, 6 * units.MiB, 8 * units.MiB, methodOverwrite},
		{"Overwrite, reading", WipeOverwrite, 8 * units.MiB, 10 * units.MiB, 10 * units.MiB, methodOverwrite},
		{"SecureDiscard", WipeSecureDiscard, 4 * units.MiB, 6 * units.MiB, 8 * units.MiB, methodSecureDiscard},
	} {
		t.Run(test.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				l := initialized(t, 32*units.MiB, sector)
				l.wipeMethods.saveInterval = smallInterval
				l.wipeMethods.secureDiscard = method{methodSecureDiscard, units.MiB, always}
				over, secure := countCalls(&l.wipeMethods.overwrite), countCalls(&l.wipeMethods.secureDiscard)
				punch := l.wipeMethods.zero[0]
				punched := countCalls(&punch)
				l.useMethods(punch)
				d := l.open(t)
				ctx := t.Context()
				v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(3, 10), Note: "of a"})
				if err != nil {
					t.Fatal(err)
				}
				writeCanary(t, l, v)
				var crashed *loopDisk
				_, err = d.Wipe(ctx, guidA, WipeOptions{Policy: test.policy, Progress: func(done int64) {
					if crashed == nil && done >= test.crash {
						crashed = l.copyTo(t, sector)
					}
				}})
				if err != nil || crashed == nil {
					t.Fatal(err, crashed)
				}
				*over, *secure, *punched = nil, nil, nil
				d = crashed.open(t)
				if s := d.Snapshot(); len(s.Volumes) != 1 || s.Volumes[0].Phase != Wiping || s.Volumes[0].Note != "of a" || s.Volumes[0].Wipe.Policy != test.policy || s.Volumes[0].Device != "" {
					t.Fatalf("after the crash: %+v", s.Volumes)
				}
				first := int64(-1)
				w, err := d.Wipe(ctx, guidA, WipeOptions{Progress: func(done int64) {
					if first < 0 {
						first = done
					}
				}})
				if err != nil || w.Policy != test.policy || w.Method != test.method || !w.Verified {
					t.Fatalf("taken up: %+v, %v", w, err)
				}
				steps := slices.Concat(*over, *secure, *punched)
				if from := 3*units.MiB + test.from; len(steps) == 0 && test.from < 10*units.MiB || len(steps) > 0 && (steps[0] < from || steps[0] > 3*units.MiB+test.to) {
					t.Errorf("it goes on at %v, and should between %d and %d", steps, from, 3*units.MiB+test.to)
				}
				if first < test.crash-3*units.MiB {
					t.Errorf("it reports %d bytes first", first)
				}
				if n := countCanaries(t, crashed); n != 0 {
					t.Errorf("%d canaries are left", n)
				}
			})
		})
	}
}

// TestResumedWipeIsVerified asserts that what was zeroed before a restart is read back after it. A wipe whose proof
// fails starts from the volume's beginning.
func TestResumedWipeIsVerified(t *testing.T) {
	for _, policy := range []WipePolicy{WipeZero, WipeOverwrite} {
		t.Run(string(policy), func(t *testing.T) {
			l, d, _, over := volumeBeingWiped(t)
			interruptWipe(t, d, policy, 4*units.MiB)
			d.Close()
			l.writeAt(t, []byte("not zero"), 3*units.MiB)
			d = l.open(t)
			*over = nil
			if _, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{Policy: policy}); err == nil || (*over)[0] == 3*units.MiB {
				t.Fatalf("the extent does not read as zeros, and the wipe, which went on at %v, says %v", *over, err)
			}
			*over = nil
			if _, err := d.Wipe(t.Context(), guidA, WipeOptions{Policy: policy}); err != nil || (*over)[0] != 3*units.MiB {
				t.Errorf("the next wipe begins at %v: %v", *over, err)
			}
			if n := countCanaries(t, l); n != 0 {
				t.Errorf("%d canaries are left", n)
			}
		})
	}
}

// TestOtherPolicyStartsOver asserts that the progress of one policy does not count for another.
func TestOtherPolicyStartsOver(t *testing.T) {
	l, d, _, over := volumeBeingWiped(t)
	interruptWipe(t, d, WipeZero, 7*units.MiB)
	d.Close()
	d = l.open(t)
	*over = nil
	if _, err := d.Wipe(t.Context(), guidA, WipeOptions{Policy: WipeOverwrite}); err != nil || len(*over) != 10 {
		t.Errorf("under another policy %d MiB were written: %v", len(*over), err)
	}
}

// TestMethodStartsOver asserts that the next method begins at 0. The disk has no progress of the failed method when the
// next one writes its first byte.
func TestMethodStartsOver(t *testing.T) {
	lies := method{methodPunch, units.MiB, func(*blockDevice, int64, int64) error { return nil }}
	l := initialized(t, 32*units.MiB, 512)
	l.wipeMethods.saveInterval = smallInterval
	var first []int64
	proves := method{methodZeroOut, units.MiB, func(d *blockDevice, off, n int64) error {
		if len(first) == 0 {
			if s := l.slotOf(t, 1, guidA); s.progress.zeroed != 0 {
				t.Errorf("the disk still says %+v", s.progress)
			}
		}
		first = append(first, off)
		return overwrite(d, off, n)
	}}
	l.useMethods(lies, proves)
	d := l.open(t)
	writtenVolume(t, l, d)
	if w, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{}); err != nil || w.Method != methodZeroOut || first[0] != 3*units.MiB || len(first) != 10 {
		t.Errorf("%+v, %v, steps at %v", w, err, first)
	}
}

// slotOf reads from the medium what is kept of a volume.
func (l *loopDisk) slotOf(t *testing.T, index int, partition string) slot {
	t.Helper()
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all := make([]byte, units.MiB)
	if _, err := d.ReadAt(all, units.MiB); err != nil {
		t.Fatal(err)
	}
	return decodeVolumeSlot(all[int64(index-1)*slotBytes:][:slotBytes], partition)
}

// TestEarlierProgress asserts that a new wipe ignores the progress of an earlier volume of the same GUID. It also
// ignores progress that is impossible.
func TestEarlierProgress(t *testing.T) {
	l, d, v, over := volumeBeingWiped(t)
	e := entry{index: v.Index, guid: guidA, extent: v.Extent}
	err := d.runInWorker(t.Context(), func(context.Context) error {
		return d.writeSlot(e, slot{wipe: WipeSettings{Policy: WipeZero}, progress: progress{methodOverwrite, 10 * units.MiB, 0}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := wipeVolume(t.Context(), d, guidA); err != nil || len(*over) != 10 || countCanaries(t, l) != 0 {
		t.Errorf("%d MiB were written, %d canaries are left: %v", len(*over), countCanaries(t, l), err)
	}
	for _, p := range []progress{{methodOverwrite, -units.MiB, 0}, {methodOverwrite, 11 * units.MiB, 0}, {methodOverwrite, units.MiB, 2 * units.MiB}, {methodOverwrite, units.MiB + 1, 0}, {methodOverwrite, units.MiB, -units.MiB}, {methodOverwrite, units.MiB, 1}} {
		if p.fits(10 * units.MiB) {
			t.Errorf("%+v of 10 MiB is believed", p)
		}
	}
	if p := (progress{methodOverwrite, 10 * units.MiB, 10 * units.MiB}); !p.fits(10 * units.MiB) {
		t.Errorf("%+v of 10 MiB is not believed", p)
	}
}

// TestOpenWhileWiping asserts that a volume that is being wiped has no device after a boot, when the kernel shows all
// partitions. If a process has it open it has one, and then its progress does not count any more.
func TestOpenWhileWiping(t *testing.T) {
	l, d, v, over := volumeBeingWiped(t)
	interruptWipe(t, d, "", 7*units.MiB)
	boot := func() {
		d.Close()
		device, err := openDevice(l.path, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		if _, err := device.attach(t.Context(), v.Index, v.Extent); err != nil {
			t.Fatal(err)
		}
	}
	boot()
	d = l.open(t)
	if s := d.Snapshot(); s.Volumes[0].Device != "" || len(l.partitions(t)) != 1 {
		t.Errorf("after a boot: %+v, the kernel has %v", s.Volumes, l.partitions(t))
	}
	boot()
	holder, err := os.OpenFile(v.Device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	d = l.open(t)
	if s := d.Snapshot(); s.Volumes[0].Device != v.Device {
		t.Errorf("with the device open: %+v", s.Volumes)
	}
	*over = nil
	if err := wipeVolume(withoutLogs(t), d, guidA); !errors.Is(err, ErrInUse) || len(*over) > 0 {
		t.Errorf("with the device open %v was written: %v", *over, err)
	}
	if _, err := holder.WriteAt(bytes.Repeat([]byte("late"), 1024), 2*units.MiB+4096); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(holder.Sync(), holder.Close()); err != nil {
		t.Fatal(err)
	}
	if err := wipeVolume(t.Context(), d, guidA); err != nil || len(*over) != 10 {
		t.Errorf("after it was open %d MiB were written: %v", len(*over), err)
	}
	if raw, err := os.ReadFile(l.image); err != nil || bytes.Contains(raw, []byte("late")) {
		t.Errorf("what was written meanwhile is left: %v", err)
	}
}

// TestPowerCutsInProgress asserts that a note survives every power cut while the progress of the volume's wipe, or of
// its neighbor's, is written. What is read is the old slot or the new one.
func TestPowerCutsInProgress(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	for _, l := range crashLayouts(t) {
		m, _ := newFormattedDisk(t, l)
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(reserve(guidA, 2, 3).do(t, s), reserve(guidB, 5, 3).do(t, s)); err != nil {
			t.Fatal(err)
		}
		d := &Disk{store: s, slots: map[string]slot{}}
		note := strings.Repeat("n", MaxNote)
		kept := map[string]slot{guidA: {note: note, wipe: WipeSettings{Policy: WipeOverwrite}}, guidB: {note: "of b"}}
		for _, guid := range []string{guidA, guidB} {
			e, _ := s.table.volume(guid)
			if err := d.writeSlot(e, kept[guid]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range int64(6) {
			guid := []string{guidA, guidB}[i%2]
			e, _ := s.table.volume(guid)
			old := kept[guid]
			next := old
			next.progress = progress{methodOverwrite, i * units.MiB, 0}
			before := m.clone()
			m.log = nil
			if err := errors.Join(d.writeSlot(e, next), m.Sync()); err != nil {
				t.Fatal(err)
			}
			powerCuts(before, m.log, random, func(cut *memDisk, _ int) {
				slots, err := readSlots(cut, s.table)
				if err != nil {
					t.Fatal(err)
				}
				for other, want := range kept {
					if got := slots[other]; got != want && (other != guid || got != next) {
						t.Fatalf("%s: %+v is read, neither %+v nor %+v", strconv.FormatInt(i, 10), got, old, next)
					}
				}
			})
			kept[guid] = next
		}
	}
}
