package disk

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// writtenVolume is a volume of 10 MiB at 3 MiB, full of canaries.
func writtenVolume(t *testing.T, l *loopDisk, d *Disk) Volume {
	t.Helper()
	v, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Name: "default/web data", Extent: extentMiB(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	writeCanary(t, l, v)
	return v
}

// TestWipePolicies asserts what each policy leaves of a volume, and what its record says.
func TestWipePolicies(t *testing.T) {
	all := int(10 * units.MiB / 8)
	discarding := defaultWipeMethods().secureDiscard
	// Erases the first half, and leaves the second half as it was.
	partly := method{"BLKSECDISCARD", units.MiB, func(d *blockDevice, off, n int64) error {
		if off >= 8*units.MiB { // the volume begins at 3 MiB
			return nil
		}
		return overwrite(d, off, n)
	}}
	for _, test := range []struct {
		name       string
		policy     WipePolicy
		discarding method
		method     string
		verified   bool
		left       int
		kept       bool // the file behind the disk has kept its blocks
	}{
		{"default", "", discarding, "PUNCH_HOLE", true, 0, false},
		{"Zero", WipeZero, discarding, "PUNCH_HOLE", true, 0, false},
		{"Overwrite", WipeOverwrite, discarding, "overwrite", true, 0, true},
		{"SecureDiscard of a device without", WipeSecureDiscard, discarding, "overwrite", true, 0, true},
		{"SecureDiscard", WipeSecureDiscard, partly, "BLKSECDISCARD", true, 0, false},
		{"None", WipeNone, discarding, "none", false, all, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				l := initialized(t, 32*units.MiB, sector)
				l.wipeMethods.secureDiscard = test.discarding
				d := l.open(t)
				ctx := t.Context()
				writtenVolume(t, l, d)
				allocated := l.allocated(t)
				var progress []int64
				began := time.Now()
				w, err := d.Wipe(ctx, guidA, WipeOptions{Policy: test.policy, Progress: func(done int64) { progress = append(progress, done) }})
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				policy := test.policy
				if policy == "" {
					policy = WipeZero
				}
				want := WipeResult{Partition: guidA, Name: "default/web data", Extent: extentMiB(3, 10), Pieces: 1, Policy: policy, Method: test.method, Verified: test.verified, Began: w.Began, Took: w.Took}
				if w != want || w.Began.Before(began) || w.Took <= 0 || w.Took > took {
					t.Errorf("the record is %+v, want %+v", w, want)
				}
				if n := countCanaries(t, l); n != test.left {
					t.Errorf("%d canaries are left, not %d", n, test.left)
				}
				if now := l.allocated(t); (now >= allocated) != test.kept {
					t.Errorf("the file behind the disk had %d bytes, and has %d", allocated, now)
				}
				if policy != WipeNone && progress[len(progress)-1] != 10*units.MiB {
					t.Errorf("progress ended at %v", progress)
				}
				if s := d.Snapshot(); len(s.Volumes) > 0 || !s.Free.Contains(extentMiB(3, 10)) {
					t.Errorf("afterwards: %+v", s)
				}
				// The next volume there must not be Prezeroed, or must read as zeros.
				v, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(3, 2)})
				if err != nil || v.Prezeroed != (policy != WipeNone) {
					t.Errorf("a volume in its place: %+v, %v", v, err)
				}
				if _, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(6, 2), Raw: true}); err != nil {
					t.Error(err)
				}
				if _, err := d.Grow(ctx, guidC, 7*units.MiB); err != nil {
					t.Error(err)
				}
				raw, err := os.ReadFile(l.image)
				if e := extentMiB(6, 7); err != nil || !allZero(raw[e.Start:e.End]) {
					t.Errorf("a raw volume in its place holds something: %v", err)
				}
			})
		})
	}
}

// allocated is how many bytes of the disk's file are allocated.
func (l *loopDisk) allocated(t *testing.T) int64 {
	t.Helper()
	testenv.Run(t, "sync", l.image)
	var st unix.Stat_t
	if err := unix.Stat(l.image, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestPolicyIsNotSatisfied asserts that a volume is kept if its device reports zeros that are none.
func TestPolicyIsNotSatisfied(t *testing.T) {
	lies := method{"lies", units.MiB, func(*blockDevice, int64, int64) error { return nil }}
	for _, policy := range []WipePolicy{WipeZero, WipeOverwrite, WipeSecureDiscard, "Shred"} {
		t.Run(string(policy), func(t *testing.T) {
			l := initialized(t, 32*units.MiB, 512)
			d := l.open(t)
			writtenVolume(t, l, d)
			*l.wipeMethods = wipeMethods{[]method{lies}, lies, lies, l.wipeMethods.saveInterval}
			want := []string{"a:Wiping@3+10"}
			if policy == "Shred" {
				want = []string{"a:Reserved@3+10"}
			}
			w, err := d.Wipe(withoutLogs(t), guidA, WipeOptions{Policy: policy})
			if err == nil || w.Verified || w.Policy != policy || errors.Is(err, ErrOutOfService) {
				t.Errorf("%+v, %v", w, err)
			}
			if s := d.Snapshot(); !slices.Equal(volumes(s), want) || s.Err != nil || s.Free.Overlaps(extentMiB(3, 10)) {
				t.Errorf("afterwards: %+v", s)
			}
		})
	}
}

// TestWipeIsResumed asserts that a wipe that was cut short under one policy is finished under another.
func TestWipeIsResumed(t *testing.T) {
	for _, next := range []WipePolicy{WipeZero, WipeOverwrite, WipeNone} {
		t.Run(string(next), func(t *testing.T) {
			l := initialized(t, 32*units.MiB, 512)
			d := l.open(t)
			writtenVolume(t, l, d)
			interruptWipe(t, d, WipeOverwrite, 2*units.MiB)
			left := countCanaries(t, l)
			if left == 0 || left >= int(10*units.MiB/8) {
				t.Fatalf("cut short: %d canaries", left)
			}
			d.Close()
			l.removePartitions(t)
			d = l.open(t)
			if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Wiping@3+10"}) {
				t.Fatalf("opened again: %v", got)
			}
			w, err := d.Wipe(t.Context(), guidA, WipeOptions{Policy: next})
			if err != nil || w.Policy != next {
				t.Fatalf("taken up: %+v, %v", w, err)
			}
			if next != WipeNone {
				left = 0
			}
			if n := countCanaries(t, l); n != left {
				t.Errorf("%d canaries are left, not %d", n, left)
			}
		})
	}
}

// TestWipeRate asserts that all wipes of a disk together stay within the rate, and that a waiting wipe can be
// canceled.
func TestWipeRate(t *testing.T) {
	const rate = 100 * units.MiB
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	begin := time.Now()
	var both sync.WaitGroup
	for i, guid := range []string{guidA, guidB} {
		if _, err := d.Create(ctx, CreateOptions{Partition: guid, Extent: extentMiB(2+int64(i)*20, 20)}); err != nil {
			t.Fatal(err)
		}
		both.Go(func() {
			if _, err := d.Wipe(ctx, guid, WipeOptions{Policy: WipeOverwrite, Rate: rate}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	// 40 MiB are written and 40 MiB read. The last step does not wait.
	took, least := time.Since(begin), 79*units.MiB*int64(time.Second)/rate
	t.Logf("80 MiB at %d MiB/s took %v", rate/units.MiB, took)
	if took < time.Duration(least) {
		t.Errorf("it should take %v at least", time.Duration(least))
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(2, 20)}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := d.Wipe(short, guidC, WipeOptions{Policy: WipeOverwrite, Rate: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wipe that waits for its rate: %v", err)
	}
}

// TestStepsOfRate asserts that with a limit one step is no more than a quarter of a second's worth.
func TestStepsOfRate(t *testing.T) {
	for _, test := range []struct{ rate, most, want int64 }{
		{0, 256 * units.MiB, 256 * units.MiB},
		{1, 256 * units.MiB, units.MiB},
		{40 * units.MiB, 256 * units.MiB, 10 * units.MiB},
		{1 << 60, 256 * units.MiB, 256 * units.MiB},
	} {
		by := rateLimit{&pacer{}, test.rate}
		if got := by.step(test.most); got != test.want {
			t.Errorf("at %d bytes a second: steps of %d, want %d", test.rate, got, test.want)
		}
	}
	// Bytes are not lost between steps, and huge numbers do not overflow.
	p := &pacer{}
	begin := time.Now()
	if err := p.wait(t.Context(), 1<<60, 1); err != nil {
		t.Fatal(err)
	}
	if p.next.Before(begin) {
		t.Error("the next turn lies in the past")
	}
}

// TestReadBackEnds asserts that reading back ends with an error if the device fails half way, or if the caller gives
// up.
func TestReadBackEnds(t *testing.T) {
	l := newLoopDisk(t, 8*units.MiB, 512)
	d, err := openDevice(l.path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if found, err := (&zeroJob{device: d, extent: extentMiB(0, 8)}).findNonZero(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("all of the device: %v, %v", found, err)
	}
	if _, err := (&zeroJob{device: d, extent: extentMiB(0, 16)}).findNonZero(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("more than the device: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = (&zeroJob{device: d, extent: extentMiB(0, 8), onProgress: func(int64) { cancel() }}).findNonZero(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
}
