package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/pkg/extent"
)

// The kernel is given partitions by BLKPG, one at a time. This package never has the kernel read the table again. That
// fails while any partition is mounted. A kernel without GPT support would drop all partitions.
//
// BLKPG accepts the numbers 1 to 255. Volumes in entries above become loop devices, see loopAttacher, or all volumes of
// the disk are mapped, see dmAttacher. Some devices have no partitions at all, and BLKPG fails with EINVAL: all their
// volumes are mapped.

// attacher makes the kernel show the entries of a disk as block devices, in one way.
type attacher interface {
	// attach returns the device of a volume, and makes it unless it exists. A device that is shorter than the entry is
	// lengthened: an agent ended while the volume grew.
	attach(ctx context.Context, e entry) (device string, err error)
	// detach removes the device, if there is one. It returns ErrInUse if the device is still open after timeout.
	detach(ctx context.Context, e entry, timeout time.Duration) error
}

// attacherOf is the attacher of an entry of a disk that is not mapped.
func (d *Disk) attacherOf(e entry) attacher {
	if e.index <= MetaEntry {
		return partitionAttacher{d.device}
	}
	return d.loops
}

// chooseAttacher decides how the volumes are attached until the disk is closed. They are mapped by the device mapper in
// one of these cases:
//  1. The kernel gives the device no partitions.
//  2. They are mapped already.
//  3. Some have no partition number, and nothing of the disk is in use.
//
// Otherwise they are partitions, and loop devices where the numbers end. chooseAttacher does not wait, so a disk that
// is in use is attached as before until the node boots again.
func (d *Disk) chooseAttacher(ctx context.Context, t table) error {
	if d.noMapper {
		return nil
	}
	m, err := d.device.findMapped()
	if err == nil && m == nil && d.device.lacksPartitions() {
		return fmt.Errorf("the kernel gives %s no partitions, and %s that would replace them is missing: load the module dm_mod", d.device.path, mapperControl)
	}
	if err != nil || m == nil {
		return err
	}
	if d.device.lacksPartitions() {
		d.mapped = m
		return nil
	}
	if len(m.found) > 0 {
		err = m.dropPartitions(ctx)
		d.mapped = m
		return err
	}
	taken, err := m.takeOver(ctx, t)
	if err != nil || !taken {
		return errors.Join(err, m.mapper.Close())
	}
	d.mapped = m
	return nil
}

// holdMeta attaches the meta partition and opens it exclusively.
func (d *Disk) holdMeta(ctx context.Context, t table) error {
	// Every valid table has a meta partition.
	meta := t.entries[slices.IndexFunc(t.entries, entry.isMeta)]
	var node string
	var err error
	if d.mapped != nil {
		node, err = d.mapped.attach(ctx, set{first: meta})
	} else {
		node, err = d.attacherOf(meta).attach(ctx, meta)
	}
	if err != nil {
		return err
	}
	d.meta, err = os.OpenFile(node, os.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("another agent has the disk open%s: %w", heldBy(ctx, node), ErrInUse)
	}
	return err
}

// heldBy names the processes that hold the meta partition, as far as they are visible. One that was killed may wait for
// another disk that hangs, and until then it keeps this disk open, too.
func heldBy(ctx context.Context, node string) string {
	const timeout = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, _, err := holders.OfDevice(ctx, node)
	if err != nil || len(found) == 0 {
		return ""
	}
	return " (" + holders.Describe(found) + ")"
}

// releaseDevices releases what holdMeta and chooseAttacher took. Volumes stay attached.
func (d *Disk) releaseDevices() error {
	var err error
	if d.meta != nil {
		err = d.meta.Close()
	}
	if d.mapped != nil {
		err = errors.Join(err, d.mapped.close())
	}
	if d.linear != nil {
		err = errors.Join(err, d.linear.mapper.Close())
	}
	return err
}

// partitionAttacher attaches the entries up to the last number that the kernel knows.
type partitionAttacher struct{ disk *blockDevice }

func (p partitionAttacher) attach(ctx context.Context, e entry) (string, error) {
	return p.disk.attach(ctx, e.index, e.extent)
}

func (p partitionAttacher) detach(ctx context.Context, e entry, timeout time.Duration) error {
	return p.disk.detach(ctx, e.index, timeout)
}

// sysfsSector is the unit of sysfs, for every sector size of the disk. It is used for nothing else.
const sysfsSector = 512

// partition is a partition that the kernel has attached.
type partition struct {
	index  int
	extent extent.Extent
	name   string // the kernel's, such as nvme0n1p3
	rdev   uint64
}

// partitions lists what the kernel has attached of the disk, by number.
func (d *blockDevice) partitions() (map[int]partition, error) {
	entries, err := os.ReadDir(d.sys)
	if err != nil {
		return nil, fmt.Errorf("partitions of %s: %w", d.path, err)
	}
	found := map[int]partition{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), d.name) {
			continue
		}
		p, err := readPartition(filepath.Join(d.sys, e.Name()))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // removed meanwhile, or not a partition
		}
		if err != nil {
			return nil, err
		}
		found[p.index] = p
	}
	return found, nil
}

// partitionName is the name that the kernel gives a partition.
func (d *blockDevice) partitionName(index int) string {
	name := d.name
	if last := name[len(name)-1]; last >= '0' && last <= '9' {
		name += "p"
	}
	return name + strconv.Itoa(index)
}

// readPartition reads one partition's directory of sysfs.
func readPartition(dir string) (partition, error) {
	p := partition{name: filepath.Base(dir)}
	index, err := readNumber(filepath.Join(dir, "partition"))
	if err != nil {
		return p, err
	}
	start, err := readNumber(filepath.Join(dir, "start"))
	if err != nil {
		return p, err
	}
	size, err := readNumber(filepath.Join(dir, "size"))
	if err != nil {
		return p, err
	}
	if p.rdev, err = readDeviceNumber(dir); err != nil {
		return p, err
	}
	p.index, p.extent = int(index), extent.New(start*sysfsSector, size*sysfsSector)
	return p, nil
}

// readDeviceNumber reads the number of a device from its directory in sysfs.
func readDeviceNumber(dir string) (uint64, error) {
	dev, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(dev), "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("%s/dev: %w", dir, err)
	}
	return unix.Mkdev(major, minor), nil
}

// readNumber reads a file of sysfs that holds one number.
func readNumber(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// attach adds a partition to the kernel, unless it is there, and waits for the device node. One that is shorter in the
// kernel is lengthened: an agent ended while the volume grew. A partition at another place is an error: it may be in
// use.
func (d *blockDevice) attach(ctx context.Context, index int, e extent.Extent) (device string, err error) {
	// EBUSY: the kernel has that number already, or another partition lies there.
	added := d.blkpg(unix.BLKPG_ADD_PARTITION, index, e)
	if added != nil && !errors.Is(added, unix.EBUSY) {
		return "", fmt.Errorf("attaching partition %d of %s at %v: %w", index, d.path, e, added)
	}
	name := d.partitionName(index)
	if added == nil {
		rdev, err := readDeviceNumber(filepath.Join(d.sys, name))
		if err != nil {
			return "", fmt.Errorf("attaching partition %d of %s at %v: %w", index, d.path, e, err)
		}
		return partition{name: name, rdev: rdev}.awaitNode(ctx)
	}
	p, err := readPartition(filepath.Join(d.sys, name))
	if err != nil {
		return "", fmt.Errorf("attaching partition %d of %s at %v: %w", index, d.path, e, errors.Join(added, err))
	}
	if p.extent != e {
		if err := d.lengthen(p, e); err != nil {
			return "", err
		}
	}
	return p.awaitNode(ctx)
}

// awaitNode returns the path of the partition's device node as soon as the node exists.
func (p partition) awaitNode(ctx context.Context) (string, error) {
	path := "/dev/" + strings.ReplaceAll(p.name, "!", "/")
	err := await(ctx, nodeTimeout, func() (bool, error) {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == p.rdev, err
	})
	if errors.Is(err, errTimeout) {
		return "", fmt.Errorf("partition %s is attached, but %s is not its device: is the host's /dev mounted here?", p.name, path)
	}
	if err != nil {
		return "", fmt.Errorf("device %s: %w", path, err)
	}
	return path, nil
}

// detach removes a partition from the kernel. It waits for a process that only looks at it (udev, blkid), and returns
// ErrInUse if the partition stays open.
func (d *blockDevice) detach(ctx context.Context, index int, timeout time.Duration) error {
	err := await(ctx, timeout, func() (bool, error) {
		err := d.blkpg(unix.BLKPG_DEL_PARTITION, index, extent.Extent{})
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		if errors.Is(err, unix.ENXIO) {
			// No such partition, or no such disk: the next read of the disk shows which.
			return true, nil
		}
		return err == nil, err
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("detaching partition %d of %s: %w", index, d.path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("detaching partition %d of %s: %w", index, d.path, err)
	}
	return nil
}

// blkpg adds, changes or removes one of the kernel's partitions.
func (d *blockDevice) blkpg(op int32, index int, e extent.Extent) error {
	part := unix.BlkpgPartition{Start: e.Start, Length: e.Len(), Pno: int32(index)}
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd()), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(&part)
	if errno != 0 {
		return errno
	}
	return nil
}
