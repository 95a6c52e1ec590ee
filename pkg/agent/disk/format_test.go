package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/berthdev/berth/test/units"
)

// writeDropper is a device that drops writes and reports them as done.
type writeDropper struct {
	device
	dropping bool
}

func (f *writeDropper) WriteAt(b []byte, off int64) (int, error) {
	if f.dropping {
		return len(b), nil
	}
	return f.device.WriteAt(b, off)
}

// TestCreateWithDroppedWrites asserts that a volume whose entry is not on the disk never becomes Formatted, although
// Create may return before the entry was read back.
func TestCreateWithDroppedWrites(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	err := d.runInWorker(ctx, func(context.Context) error {
		d.store.dev = &writeDropper{d.store.dev, true}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)}); err != nil {
		t.Fatal(err)
	}
	if err := d.MarkFormatted(ctx, guidA); !errors.Is(err, ErrOutOfService) {
		t.Errorf("MarkFormatted: %v", err)
	}
	if s := d.Snapshot(); !errors.Is(s.Err, ErrOutOfService) {
		t.Errorf("snapshot: %+v", s)
	}
}

// copiesOf reads both copies of the entries from the disk, nil for one that is being written.
func copiesOf(t *testing.T, l *loopDisk) (primary, backup []byte) {
	t.Helper()
	device, err := openDevice(l.path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := device.readLayout(); err != nil {
		t.Fatal(err)
	}
	var arrays [2][]byte
	for i, at := range []location{device.primary(), device.backup()} {
		c, err := readCopy(io.ReaderAt(device), device.layout, at)
		if err != nil && !errors.Is(err, errDamaged) {
			t.Fatal(err)
		}
		arrays[i] = c.array
	}
	return arrays[0], arrays[1]
}

// TestFormat asserts that Format prepares the phase in the backup while mkfs runs, and that the table does not change
// by it. The backup is restored when mkfs fails, when the disk is closed, and after a crash.
func TestFormat(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		ctx := t.Context()
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)}); err != nil {
			t.Fatal(err)
		}
		// sync waits for what Format does while mkfs runs.
		sync := func(context.Context) error { return d.Check(ctx) }
		differ := func() bool {
			primary, backup := copiesOf(t, l)
			return !bytes.Equal(primary, backup)
		}
		awaitAhead := func(ctx context.Context) error {
			return await(ctx, busyTimeout, func() (bool, error) { return differ(), nil })
		}
		if err := d.Format(ctx, guidA, func(ctx context.Context) error { return errors.Join(awaitAhead(ctx), sync(ctx), errInjected) }); !errors.Is(err, errInjected) || errors.Is(err, errTimeout) {
			t.Errorf("Format: %v", err)
		}
		if differ() {
			t.Error("the copies differ after mkfs has failed")
		}
		if err := d.Format(ctx, guidA, awaitAhead); err != nil {
			t.Error(err)
		}
		if v, _ := ptr(d.Snapshot()).Volume(guidA); v.Phase != Reserved || !differ() {
			t.Errorf("after mkfs: %+v, copies differ: %v", v, differ())
		}
		d.Close()
		if differ() {
			t.Error("the copies differ on a closed disk")
		}

		// The next agent after a crash.
		d = l.open(t)
		if err := d.Format(ctx, guidA, awaitAhead); err != nil {
			t.Error(err)
		}
		err := d.runInWorker(ctx, func(context.Context) error {
			d.failure = errInjected // so that Close leaves the disk alone
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		if !differ() {
			t.Fatal("nothing to recover from")
		}
		d = l.open(t)
		if v, _ := ptr(d.Snapshot()).Volume(guidA); v.Phase != Reserved || differ() {
			t.Errorf("after a crash: %+v, copies differ: %v", v, differ())
		}

		// The usual way, with changes of other volumes meanwhile.
		err = d.Format(ctx, guidA, func(ctx context.Context) error {
			if err := awaitAhead(ctx); err != nil {
				return err
			}
			_, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(20, 4)})
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			t.Error(err)
		}
		if err := d.Format(ctx, guidB, awaitAhead); err != nil {
			t.Error(err)
		}
		if err := d.MarkFormatted(ctx, guidB); err != nil {
			t.Error(err)
		}
		if differ() {
			t.Error("the copies differ in the end")
		}
		verifyTable(t, l.path)
	})
}
