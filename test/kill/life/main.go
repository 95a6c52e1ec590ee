// Command life runs the whole life of one volume on one disk. It adopts the disk, makes, formats, mounts, writes,
// unmounts, grows, moves and wipes the volume, and closes the disk. It records each finished step in a journal. When it
// is killed at any moment and started again, it first compares the disk with the journal, and then continues like an
// agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/space/snapshots"
)

func main() {
	l := &life{}
	var start, movedTo int64
	flag.StringVar(&l.device, "device", "", "the disk")
	flag.StringVar(&l.mountpoint, "mountpoint", "", "where the volume is mounted")
	flag.StringVar(&l.journal.path, "journal", "", "the file that says what was finished")
	flag.StringVar(&l.partition, "partition", "", "the volume's GUID")
	flag.StringVar(&l.copy, "copy", "", "the GUID of the volume's copy while it moves")
	flag.Int64Var(&movedTo, "moved", 0, "the first byte of the place that it moves to")
	flag.Int64Var(&start, "start", 0, "the volume's first byte on the disk")
	flag.Int64Var(&l.length, "length", 0, "the volume's length in bytes")
	flag.Int64Var(&l.grown, "grown", 0, "the length in bytes that it grows to")
	flag.Parse()
	l.extent, l.target = extent.New(start, l.length), extent.New(movedTo, l.grown)
	if err := l.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type life struct {
	device, mountpoint string
	journal            journal
	partition, copy    string
	extent, target     extent.Extent
	length, grown      int64
}

func (l *life) run(ctx context.Context) error {
	if err := l.journal.read(); err != nil {
		return err
	}
	id, err := l.initialize(ctx)
	if err != nil {
		return err
	}
	d, err := disk.Open(ctx, l.device, disk.Options{SeenBefore: func(found string) bool { return found == id }})
	if err != nil {
		return err
	}
	if err := l.checkAgainstJournal(d.Snapshot()); err != nil {
		return fmt.Errorf("after the restart: %w", err)
	}
	if !l.journal.has(deleted) {
		if err := l.useVolume(ctx, d); err != nil {
			return err
		}
		// The pod is gone: from now on the volume has no owner.
		if err := l.journal.add(deleted); err != nil {
			return err
		}
	}
	if !l.journal.has(wiped) {
		if err := l.wipeVolume(ctx, d); err != nil {
			return err
		}
	}
	if err := l.checkAgainstJournal(d.Snapshot()); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return d.Close()
}

// initialize initializes a blank disk, and refuses one that is not the disk from before.
func (l *life) initialize(ctx context.Context) (id string, err error) {
	found, err := disk.Inspect(ctx, l.device)
	if err != nil {
		return "", err
	}
	known := l.journal.value(adopted)
	if found.State == disk.Blank && known == "" {
		if found.ID, err = disk.Initialize(ctx, l.device, disk.Owner{}); err != nil {
			return "", err
		}
	} else if found.State != disk.Ours {
		return "", fmt.Errorf("the disk %q is %s: %s", known, found.State, found.Reason)
	}
	if known == "" {
		return found.ID, l.journal.add(adopted, found.ID)
	}
	if found.ID != known {
		return "", fmt.Errorf("the disk was %s and is %s", known, found.ID)
	}
	return known, nil
}

// checkAgainstJournal returns an error unless the disk matches what was acknowledged.
func (l *life) checkAgainstJournal(s disk.Snapshot) error {
	if err := errors.Join(s.Err, snapshots.Validate(s)); err != nil {
		return err
	}
	v, found := s.Volume(l.partition)
	longer := extent.New(l.extent.Start, l.grown)
	if found && v.Extent != l.extent && v.Extent != longer && v.Extent != l.target {
		return fmt.Errorf("the volume is at %v", v.Extent)
	}
	if c, moving := s.Volume(l.copy); moving && !l.isOfMove(c, v) {
		return fmt.Errorf("there is the volume %+v and %+v", v, c)
	}
	if l.journal.has(wiped) {
		if found || !s.Free.Contains(longer) || !s.Free.Contains(l.target) {
			return fmt.Errorf("the volume was wiped, and there is %+v, free is %v", v, s.Free)
		}
		return nil
	}
	return l.checkVolume(v, found)
}

// isOfMove reports whether the other partition of a move fits to where the volume is, before or after the switch.
func (l *life) isOfMove(c, v disk.Volume) bool {
	longer := extent.New(l.extent.Start, l.grown)
	before := c.Phase == disk.Copying && c.Extent == l.target && v.Extent == longer
	after := c.Phase == disk.Wiping && c.Extent == longer && v.Extent == l.target
	return (before || after) && v.Phase == disk.Formatted && l.journal.has(grown) && !l.journal.has(moved) && c.Device == ""
}

// checkVolume returns an error unless the volume, which is not wiped, is as was acknowledged.
func (l *life) checkVolume(v disk.Volume, found bool) error {
	switch j := &l.journal; {
	case j.has(deleted):
		if found && v.Phase == disk.Reserved {
			return fmt.Errorf("a deleted volume is %+v", v)
		}
	case j.has(moved):
		if v.Phase != disk.Formatted || v.Extent != l.target {
			return fmt.Errorf("the volume has moved, and there is %+v", v)
		}
	case j.has(grown):
		if v.Phase != disk.Formatted || v.Extent.Len() != l.grown {
			return fmt.Errorf("the volume has grown, and there is %+v", v)
		}
	case j.has(formatted):
		if v.Phase != disk.Formatted {
			return fmt.Errorf("the volume was ready, and there is %+v", v)
		}
	case found && v.Phase == disk.Wiping:
		return errors.New("the volume is being wiped without a request")
	}
	return nil
}

// useVolume is the life of the volume while it has an owner.
func (l *life) useVolume(ctx context.Context, d *disk.Disk) error {
	e := l.extent
	if v, found := snapshot(d).Volume(l.partition); found {
		e = v.Extent // it may have grown, or moved
	}
	v, err := d.Create(ctx, disk.CreateOptions{Partition: l.partition, Name: "default/life", Extent: e, Note: note})
	if err != nil {
		return err
	}
	if v.Phase == disk.Reserved {
		if err := d.Format(ctx, v.Partition, func(ctx context.Context) error { return mkfs(ctx, v) }); err != nil {
			return err
		}
		if err := d.MarkFormatted(ctx, v.Partition); err != nil {
			return err
		}
	}
	if err := l.journal.add(formatted); err != nil {
		return err
	}
	if err := l.writeOrCompare(v); err != nil {
		return err
	}
	if v, err = d.Grow(ctx, v.Partition, l.grown); err != nil {
		return err
	}
	if v.Extent != extent.New(l.extent.Start, l.grown) && v.Extent != l.target {
		return fmt.Errorf("the volume grew to %v", v.Extent)
	}
	if err := l.journal.add(grown); err != nil {
		return err
	}
	return l.moveVolume(ctx, d)
}

// moveVolume moves the volume, compares its file, and wipes the place that it has left.
func (l *life) moveVolume(ctx context.Context, d *disk.Disk) error {
	v, err := d.Move(ctx, disk.MoveOptions{Partition: l.partition, Copy: l.copy, Extent: l.target})
	if err != nil {
		return err
	}
	if v.Extent != l.target || v.Note != note {
		return fmt.Errorf("the volume moved, and is %+v", v)
	}
	if err := l.writeOrCompare(v); err != nil {
		return err
	}
	if _, err := d.Wipe(ctx, l.copy, disk.WipeOptions{}); err != nil && !errors.Is(err, disk.ErrNotFound) {
		return err
	}
	return l.journal.add(moved)
}

// note is kept beside the volume.
const note = "the note of a life"

// writeOrCompare mounts the volume, writes its file, or compares it if it was written before, and unmounts it.
func (l *life) writeOrCompare(v disk.Volume) error {
	targets, err := mounts.OfDevice(v.Device)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		if err := unix.Mount(v.Device, l.mountpoint, "ext4", 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", v.Device, err)
		}
	}
	if l.journal.has(written) {
		if err := readCanary(l.mountpoint); err != nil {
			return err
		}
	} else if err := writeCanary(l.mountpoint); err != nil {
		return err
	}
	if err := l.journal.add(written); err != nil {
		return err
	}
	return unmount(l.mountpoint, v.Device)
}

// unmount unmounts a volume and waits until no process has it. A process with its own mount namespace that started
// meanwhile may have a copy of the mount.
func unmount(target, device string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	for deadline := time.Now().Add(timeout); ; {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("after unmounting %s: %w", device, err)
		}
		<-time.After(time.Millisecond)
	}
}

// wipeVolume wipes the volume, which may have been mounted when its user was killed.
func (l *life) wipeVolume(ctx context.Context, d *disk.Disk) error {
	// In phase Wiping the volume has no device, and is not mounted.
	if v, found := snapshot(d).Volume(l.partition); found && v.Phase != disk.Wiping {
		targets, err := mounts.OfDevice(v.Device)
		if err != nil {
			return err
		}
		for _, target := range targets {
			if err := unmount(target.Mountpoint, v.Device); err != nil {
				return err
			}
		}
	}
	if _, err := d.Wipe(ctx, l.partition, disk.WipeOptions{}); err != nil && !errors.Is(err, disk.ErrNotFound) {
		return err
	}
	return l.journal.add(wiped)
}

func snapshot(d *disk.Disk) *disk.Snapshot {
	s := d.Snapshot()
	return &s
}

// timeout is for other users of a volume: an mkfs goes on when its agent is killed.
const timeout = 20 * time.Second
