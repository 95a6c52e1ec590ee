package disk

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/units"
)

// TestNothingIsZeroedOnAnotherDisk asserts that no operation writes a byte when the table on the medium has changed, as
// on a disk that was swapped. The disk is out of service then.
func TestNothingIsZeroedOnAnotherDisk(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, d *Disk) error{
		"a wipe":          func(ctx context.Context, d *Disk) error { return wipeVolume(ctx, d, guidA) },
		"a wipe taken up": func(ctx context.Context, d *Disk) error { return wipeVolume(ctx, d, guidB) },
		"a volume with a note": func(ctx context.Context, d *Disk) error {
			_, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(40, 4), Note: "of c"})
			return err
		},
		"a raw volume":          createRawVolume,
		"a volume that grows":   func(ctx context.Context, d *Disk) error { _, err := d.Grow(ctx, guidA, 8*units.MiB); return err },
		"how it is to be wiped": func(ctx context.Context, d *Disk) error { return d.SetWipe(ctx, guidA, WipeSettings{Policy: WipeNone}) },
		"a move": func(ctx context.Context, d *Disk) error {
			_, err := d.Move(ctx, MoveOptions{Partition: c2, Copy: c3, Extent: extentMiB(50, 6)})
			return err
		},
		"a move taken up": func(ctx context.Context, d *Disk) error {
			_, err := d.Move(ctx, MoveOptions{Partition: c2, Copy: c4, Extent: extentMiB(44, 4)})
			return err
		},
		"the owner": func(ctx context.Context, d *Disk) error { return d.SetOwner(ctx, ownerTwo) },
	} {
		t.Run(name, func(t *testing.T) {
			l := initialized(t, 64*units.MiB, 512)
			fillWithData(t, l, extentMiB(2, 61))
			d := l.open(t)
			for i, guid := range []string{guidA, guidB} {
				if _, err := d.Create(withoutLogs(t), CreateOptions{Partition: guid, Extent: extentMiB(4+20*int64(i), 4)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := d.Create(withoutLogs(t), CreateOptions{Partition: c2, Extent: extentMiB(34, 4), Raw: true}); err != nil {
				t.Fatal(err)
			}
			err := d.runInWorker(t.Context(), func(ctx context.Context) error {
				e, err := d.store.table.volume(c2)
				if err == nil {
					_, _, _, err = d.ensureTarget(ctx, e, MoveOptions{Partition: c2, Copy: c4, Extent: extentMiB(44, 4)})
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			cut, cancel := context.WithCancel(withoutLogs(t))
			cancel()
			called := 0
			l.useMethods(method{"cut", units.MiB, func(*blockDevice, int64, int64) error { called++; return errInjected }})
			if _, err := d.Wipe(withoutLogs(t), guidB, WipeOptions{}); !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			if _, err := d.Wipe(cut, guidB, WipeOptions{}); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			d.waitIdle(t)
			called = 0
			// Both copies are lost, as on another disk.
			l.writeAt(t, make([]byte, units.MiB), 0)
			l.writeAt(t, make([]byte, units.MiB), 63*units.MiB)
			before := l.hash(t)
			if err := do(withoutLogs(t), d); !errors.Is(err, ErrOutOfService) {
				t.Errorf("%v", err)
			}
			if called > 0 || l.hash(t) != before {
				t.Errorf("the disk was written to; the method was called %d times", called)
			}
			if err := d.Snapshot().Err; !errors.Is(err, ErrOutOfService) {
				t.Errorf("the snapshot says %v", err)
			}
		})
	}
}

func createRawVolume(ctx context.Context, d *Disk) error {
	_, err := d.Create(ctx, CreateOptions{Partition: guidC, Extent: extentMiB(40, 4), Raw: true})
	return err
}

// TestLockedDisk asserts that neither Open nor Initialize changes a disk while another process, such as udev or another
// agent's Initialize, holds its lock.
func TestLockedDisk(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, path string) error{
		"Initialize": func(ctx context.Context, path string) error {
			_, err := Initialize(ctx, path, Owner{})
			return err
		},
		"Open": func(ctx context.Context, path string) error {
			d, err := Open(ctx, path, Options{})
			if err == nil {
				d.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoopDisk(t, 32*units.MiB, 512)
			if name == "Open" {
				if _, err := Initialize(t.Context(), l.path, Owner{}); err != nil {
					t.Fatal(err)
				}
			}
			other, err := os.Open(l.path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				t.Fatal(err)
			}
			before := l.hash(t)
			short, cancel := context.WithTimeout(withoutLogs(t), 50*time.Millisecond)
			defer cancel()
			if err := do(short, l.path); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("of a locked disk: %v", err)
			}
			if l.hash(t) != before {
				t.Error("the disk was written to")
			}
			if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
				t.Fatal(err)
			}
			if err := do(withoutLogs(t), l.path); err != nil {
				t.Errorf("of a disk that is locked no more: %v", err)
			}
		})
	}
}

// TestZeroedOnce asserts that space counts as zeroed only until a volume gets it. If that volume is wiped with
// WipeNone, its bytes are zeroed before a raw volume gets them.
func TestZeroedOnce(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	create := func(o CreateOptions) Volume {
		t.Helper()
		v, err := d.Create(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	create(CreateOptions{Partition: guidA, Extent: extentMiB(2, 12)})
	if err := wipeVolume(ctx, d, guidA); err != nil {
		t.Fatal(err)
	}
	create(CreateOptions{Partition: guidB, Extent: extentMiB(2, 4)})
	grown, err := d.Grow(ctx, guidB, 12*units.MiB)
	if err != nil {
		t.Fatal(err)
	}
	writeCanary(t, l, grown)
	if _, err := d.Wipe(ctx, guidB, WipeOptions{Policy: WipeNone}); err != nil {
		t.Fatal(err)
	}
	for i, guid := range []string{guidC, c2} {
		v := create(CreateOptions{Partition: guid, Extent: extentMiB(2+6*int64(i), 4), Raw: true})
		if !allZero(readContent(t, v)) {
			t.Errorf("the raw volume at %v holds what the last volume there held", v.Extent)
		}
	}
	// A volume that is being wiped does not grow either.
	cut, cancel := context.WithCancel(ctx)
	cancel()
	l.useMethods(method{"cut", units.MiB, func(*blockDevice, int64, int64) error { return errInjected }})
	if _, err := d.Wipe(withoutLogs(t), guidC, WipeOptions{}); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	if _, err := d.Wipe(cut, guidC, WipeOptions{}); err == nil {
		t.Fatal("a wipe whose caller gave up was done")
	}
	if err := d.runInWorker(ctx, func(ctx context.Context) error { _, err := d.grow(ctx, guidC, 5*units.MiB); return err }); !errors.Is(err, ErrInUse) {
		t.Errorf("a volume that is being wiped grows: %v", err)
	}
}
