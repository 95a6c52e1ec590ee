//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

// formatted makes a file system like the agent: the volume becomes Formatted only when the file system is on the
// medium.
func formatted(ctx context.Context, d *disk.Disk, partition string) error {
	device, err := deviceOf(d, partition)
	if err != nil {
		return err
	}
	err = d.Format(ctx, partition, func(ctx context.Context) error {
		return program(ctx, "mkfs.ext4", "-q", "-F", "-m0", "-U", partition, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device)
	})
	if err != nil {
		return err
	}
	return d.MarkFormatted(ctx, partition)
}

func wipe(ctx context.Context, d *disk.Disk, partition string) error {
	_, err := d.Wipe(ctx, partition, disk.WipeOptions{})
	return err
}

func deviceOf(d *disk.Disk, partition string) (string, error) {
	s := d.Snapshot()
	v, ok := s.Volume(partition)
	if !ok || v.Device == "" {
		return "", fmt.Errorf("volume %s is not there, or has no device", partition)
	}
	return v.Device, nil
}

func program(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func mountPoint(partition string) string { return "/run/" + partition }

func mount(d *disk.Disk, partition string) error {
	device, err := deviceOf(d, partition)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(mountPoint(partition), 0o755); err != nil {
		return err
	}
	return unix.Mount(device, mountPoint(partition), "ext4", 0, "")
}

// unmount unmounts a volume. It waits for children of this program that were forked while the volume was written to,
// and have not executed their own program yet. Until then they keep the open files.
func unmount(ctx context.Context, partition string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := unix.Unmount(mountPoint(partition), 0)
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		<-time.After(10 * time.Millisecond)
	}
}

// canary is the content of a volume. It contains the volume's name every few bytes, so that it cannot be confused with
// another's.
func canary(partition string) []byte {
	return bytes.Repeat([]byte(partition+"\n"), (256<<10)/(len(partition)+1))
}

// fill writes the canary into a file of the mounted volume, like a database: what it reports as written is on the
// medium.
func fill(partition string) error {
	dir := mountPoint(partition)
	f, err := os.Create(filepath.Join(dir, "canary"))
	if err != nil {
		return err
	}
	_, err = f.Write(canary(partition))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	above, err := os.Open(dir)
	if err != nil {
		return err
	}
	// A small ext4 has no journal: its bitmaps are on the medium only after syncfs, and unmounting reports no error.
	return errors.Join(above.Sync(), unix.Syncfs(int(above.Fd())), above.Close())
}

// leastMore is what a volume holds at least in the space by which it has grown.
const leastMore = 256 << 10

// fillMore grows the file system while it is mounted, and fills it with a file. What it reports as written is on the
// medium.
func fillMore(ctx context.Context, d *disk.Disk, partition string) error {
	device, err := deviceOf(d, partition)
	if err != nil {
		return err
	}
	if err := program(ctx, "resize2fs", device); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(mountPoint(partition), "more"))
	if err != nil {
		return err
	}
	block, written := canary(partition)[:64<<10], 0
	for err == nil && written < 12<<20 {
		var n int
		n, err = f.Write(block)
		written += n
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	if err == nil && written < leastMore {
		err = fmt.Errorf("only %d bytes fit into the grown volume", written)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	above, err := os.Open(mountPoint(partition))
	if err != nil {
		return err
	}
	return errors.Join(above.Sync(), unix.Syncfs(int(above.Fd())), above.Close())
}

// checkMore returns an error unless the file of fillMore is what was written.
func checkMore(partition string) error {
	got, err := os.ReadFile(filepath.Join(mountPoint(partition), "more"))
	if err != nil {
		return err
	}
	block := canary(partition)[:64<<10]
	for off := 0; off < len(got); off += len(block) {
		if part := got[off:min(off+len(block), len(got))]; !bytes.Equal(part, block[:len(part)]) {
			return fmt.Errorf("the bytes at %d of the grown volume are not what was written", off)
		}
	}
	if len(got) < leastMore {
		return fmt.Errorf("the grown volume has only %d bytes of what was written", len(got))
	}
	return nil
}

// verify checks the volume's file system, and then that the canary is in it, and what filled it after it grew.
func verify(ctx context.Context, d *disk.Disk, partition string, more bool) error {
	device, err := deviceOf(d, partition)
	if err != nil {
		return err
	}
	// Mounted first, like on a node: that replays the journal.
	if err := mount(d, partition); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	got, err := os.ReadFile(filepath.Join(mountPoint(partition), "canary"))
	if err == nil && !bytes.Equal(got, canary(partition)) {
		err = errors.New("the canary is not what was written")
	}
	if err == nil && more {
		err = checkMore(partition)
	}
	if err := errors.Join(err, unmount(ctx, partition)); err != nil {
		return err
	}
	return program(ctx, "e2fsck", "-fn", device)
}

// soiled returns the first byte of a part of a device that is not zero, or -1.
func soiled(device string, at extent.Extent) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	for off := at.Start; off < at.End; off += int64(len(b)) {
		if _, err := f.ReadAt(b, off); err != nil {
			return 0, err
		}
		if i := bytes.IndexFunc(b, func(r rune) bool { return r != 0 }); i >= 0 {
			return off + int64(i), nil
		}
	}
	return -1, nil
}

// zero makes a device blank.
func zero(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	part := [2]uint64{0, uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&part))); errno != 0 {
		return fmt.Errorf("BLKZEROOUT of %s: %w", device, errno)
	}
	return f.Sync()
}

// patience is how long to wait for anything that is not announced.
const patience = 30 * time.Second

func awaited(ctx context.Context, look func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		found, err := look()
		if err == nil {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
