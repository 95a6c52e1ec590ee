package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
)

// forgetful is a device that drops writes and reports them as done.
type forgetful struct {
	device
	drops bool
}

func (f *forgetful) WriteAt(b []byte, off int64) (int, error) {
	if f.drops {
		return len(b), nil
	}
	return f.device.WriteAt(b, off)
}

// TestUnprovenCreate asserts that a volume whose entry is not on the disk never becomes Formatted, although Create may
// return before the entry was read back.
func TestUnprovenCreate(t *testing.T) {
	l := initialized(t, 64*mib, 512)
	d := l.open(t)
	ctx := quiet(t)
	err := d.run(ctx, func(context.Context) error {
		d.store.dev = &forgetful{d.store.dev, true}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(2, 4)}); err != nil {
		t.Fatal(err)
	}
	if err := d.MarkFormatted(ctx, a); !errors.Is(err, ErrOutOfService) {
		t.Errorf("MarkFormatted: %v", err)
	}
	if s := d.Snapshot(); !errors.Is(s.Err, ErrOutOfService) {
		t.Errorf("snapshot: %+v", s)
	}
}

// copiesOf reads both copies of the entries from the disk, nil for one that is being written.
func copiesOf(t *testing.T, l *loop) (primary, backup []byte) {
	t.Helper()
	device, err := openDevice(l.path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if err := device.measure(); err != nil {
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
		l := initialized(t, 64*mib, sector)
		d := l.open(t)
		ctx := t.Context()
		if _, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(2, 4)}); err != nil {
			t.Fatal(err)
		}
		// sync waits for what Format does while mkfs runs.
		sync := func(context.Context) error { return d.Check(ctx) }
		differ := func() bool {
			primary, backup := copiesOf(t, l)
			return !bytes.Equal(primary, backup)
		}
		awaitAhead := func(ctx context.Context) error {
			return await(ctx, busyPatience, func() (bool, error) { return differ(), nil })
		}
		if err := d.Format(ctx, a, func(ctx context.Context) error { return errors.Join(awaitAhead(ctx), sync(ctx), errInjected) }); !errors.Is(err, errInjected) || errors.Is(err, errPatience) {
			t.Errorf("Format: %v", err)
		}
		if differ() {
			t.Error("the copies differ after mkfs has failed")
		}
		if err := d.Format(ctx, a, awaitAhead); err != nil {
			t.Error(err)
		}
		if v, _ := ptr(d.Snapshot()).Volume(a); v.Phase != Reserved || !differ() {
			t.Errorf("after mkfs: %+v, copies differ: %v", v, differ())
		}
		d.Close()
		if differ() {
			t.Error("the copies differ on a closed disk")
		}

		// The next agent after a crash.
		d = l.open(t)
		if err := d.Format(ctx, a, awaitAhead); err != nil {
			t.Error(err)
		}
		err := d.run(ctx, func(context.Context) error {
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
		if v, _ := ptr(d.Snapshot()).Volume(a); v.Phase != Reserved || differ() {
			t.Errorf("after a crash: %+v, copies differ: %v", v, differ())
		}

		// The usual way, with changes of other volumes meanwhile.
		err = d.Format(ctx, a, func(ctx context.Context) error {
			if err := awaitAhead(ctx); err != nil {
				return err
			}
			_, err := d.Create(ctx, CreateOptions{Partition: b, Extent: at(20, 4)})
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := d.MarkFormatted(ctx, a); err != nil {
			t.Error(err)
		}
		if err := d.Format(ctx, b, awaitAhead); err != nil {
			t.Error(err)
		}
		if err := d.MarkFormatted(ctx, b); err != nil {
			t.Error(err)
		}
		if differ() {
			t.Error("the copies differ in the end")
		}
		verifyTable(t, l.path)
	})
}
