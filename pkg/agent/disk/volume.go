package disk

import (
	"context"
	"errors"
	"fmt"
)

// MarkFormatted records that the volume has a file system, so that it is not formatted again. It must return before the
// volume is reported as ready. The volume may be mounted at the same time, because only its phase changes. Errors:
// ErrNotFound, ErrInUse (the volume is being wiped), ErrOutOfService.
func (d *Disk) MarkFormatted(ctx context.Context, partition string) error {
	err := d.runInWorker(ctx, func(ctx context.Context) error { return d.setPhase(ctx, partition, Formatted) })
	if err != nil {
		return fmt.Errorf("marking volume as formatted: %w", err)
	}
	return nil
}

// Format runs mkfs, which makes the file system of a Reserved volume. Meanwhile it prepares what MarkFormatted will
// write, so that less is left to do then. The volume stays Reserved, also if the agent ends before MarkFormatted.
// Errors: those of mkfs.
func (d *Disk) Format(ctx context.Context, partition string, mkfs func(ctx context.Context) error) error {
	prepared := make(chan struct{})
	go func() {
		defer close(prepared)
		// The result does not matter: MarkFormatted meets the same error, or none.
		_ = d.runInWorker(ctx, func(ctx context.Context) error { return d.prepareFormatted(ctx, partition) })
	}()
	err := mkfs(ctx)
	<-prepared
	if err != nil {
		takenBack := d.runInWorker(context.WithoutCancel(ctx), func(ctx context.Context) error { return d.store.undoPrepare(ctx) })
		return errors.Join(err, takenBack)
	}
	return nil
}

// prepareFormatted prepares the volume's phase Formatted.
func (d *Disk) prepareFormatted(ctx context.Context, partition string) error {
	e, err := d.store.table.volume(partition)
	if err != nil || e.phase() != Reserved {
		return err
	}
	next, changed, err := d.store.table.withPhase(partition, Formatted)
	if err != nil {
		return err
	}
	return d.store.prepare(ctx, next, changed)
}

// setPhase is one step of the state machine, or none if it was taken before.
func (d *Disk) setPhase(ctx context.Context, partition string, to Phase) error {
	e, err := d.store.table.volume(partition)
	if err != nil {
		return err
	}
	if e.phase() == to {
		return nil
	}
	if to != Wiping {
		if _, err := d.usableSet(partition); err != nil {
			return err
		}
	}
	next, changed, err := d.store.table.withPhase(partition, to)
	if err != nil {
		return err
	}
	if err := d.store.put(ctx, next, changed); err != nil {
		return err
	}
	d.publish()
	return nil
}

// Check reads the table from the disk and compares it with the one in memory. Call it when the device may be gone. If
// it is, the disk is out of service from then on.
func (d *Disk) Check(ctx context.Context) error {
	return d.runInWorker(ctx, func(ctx context.Context) error { return d.recheck(ctx) })
}

func (d *Disk) recheck(ctx context.Context) error {
	if err := d.store.finish(ctx); err != nil {
		return err
	}
	return d.store.checkUnchanged(d.store.onDisk.backup, d.store.onDisk.primary)
}
