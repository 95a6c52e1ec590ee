package discovery

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ReadLoop reads from the kernel what a loop device shows. The path in sysfs may be of another mount namespace.
func ReadLoop(device string) (Backing, error) {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return Backing{}, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return Backing{}, fmt.Errorf("cannot ask %s what it shows: %w", device, err)
	}
	b := Backing{Block: info.Rdevice != 0}
	number := info.Device
	if b.Block {
		number = info.Rdevice
	}
	// /sys/dev/block/8:3 leads to .../block/sda/sda3. For a file system without a device there is no such link.
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
	if target, err := os.Readlink(link); err == nil {
		b.On = filepath.Base(target)
		if _, err := os.Stat(filepath.Join(link, "partition")); err == nil {
			b.On = filepath.Base(filepath.Dir(target))
		}
	}
	return b, nil
}

// readLoops reads what the loop devices show, as far as they may be read.
func (s *rescanState) readLoops(ctx context.Context) {
	var all errgroup.Group
	all.SetLimit(maxInspections)
	for n := range s.devices {
		d := &s.devices[n]
		if _, open := s.verdicts[d.Name]; open || d.Loop == nil || d.Loop.Block || s.missing[d.Name] == "" && s.classOf(*d) == "" {
			continue
		}
		all.Go(func() error {
			b, err := callWithTimeout(ctx, s.inventory, *d, func() (Backing, error) { return s.inventory.options.Loop(d.Path) }, nil)
			d.setBacking(b, err)
			return nil
		})
	}
	_ = all.Wait()
	for _, d := range s.devices {
		if at := slices.IndexFunc(s.all, func(other Device) bool { return d.Loop != nil && other.Name == d.Name }); at >= 0 {
			s.all[at] = d
		}
	}
}

// setBacking sets what a loop device shows, or the error that it is not known.
func (d *Device) setBacking(b Backing, err error) {
	if err != nil {
		d.Unreadable = append(d.Unreadable, err.Error())
		return
	}
	d.Loop.Block = b.Block
	if d.Loop.On = b.On; b.On != "" {
		d.Below = append(d.Below, b.On)
	}
}
