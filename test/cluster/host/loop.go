package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AttachLoop attaches a file of the state directory to a free loop device with
// sectors of the given size in bytes, and returns the device's path.
//
// It leaves partition scanning off: a scan would drop partitions that were attached
// one by one, which is how Berth attaches them.
func (s *State) AttachLoop(file string, sectorSize int) (string, error) {
	if !strings.HasPrefix(file, s.Dir+"/") {
		return "", fmt.Errorf("attach %s to a loop device: not below the state directory %s, so clean-up would miss it", file, s.Dir)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("attach %s to a loop device: %w", file, err)
	}
	defer control.Close()
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer backing.Close()
	// A free device may be taken by another process before it is ours: try the next.
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("find a free loop device for %s: %w", file, err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		err = configureLoop(path, n, backing, sectorSize)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("attach %s to %s: %w", file, path, err)
		}
		return path, nil
	}
}

func configureLoop(path string, n int, backing *os.File, sectorSize int) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		// Containers with a /dev of their own don't get the nodes of new devices.
		const loopMajor = 7
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil {
			return err
		}
	}
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: uint32(sectorSize)}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil {
		return err
	}
	// Left by an earlier user who did not do as detachLoop does.
	return detachPartitions(loop, filepath.Base(path))
}

// Loops returns the loop devices whose file lies in the state directory.
func (s *State) Loops() ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		if strings.HasPrefix(string(backing), s.Dir+"/") {
			devices = append(devices, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return devices, nil
}

// removeLoops detaches the loop devices. Detaching one that is still held only marks
// it, so it looks again until they are gone.
func (s *State) removeLoops(ctx context.Context) error {
	for {
		devices, err := s.Loops()
		if err != nil || len(devices) == 0 {
			return err
		}
		var failed error
		for _, d := range devices {
			if err := detachLoop(d); err != nil && !errors.Is(err, unix.ENXIO) {
				failed = fmt.Errorf("detach %s: %w", d, err)
			}
		}
		if err := pause(ctx); err != nil {
			return errors.Join(fmt.Errorf("wait for %s to be detached: %w", strings.Join(devices, ", "), err), failed)
		}
	}
}

func detachLoop(path string) error {
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	// Partitions attached one by one outlive the detaching, and would show the next
	// user of the device partitions that its disk does not have.
	if err := detachPartitions(loop, filepath.Base(path)); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
}

// ForgetPartitions makes the kernel forget the partitions of a loop device, as it does
// when the machine goes down. It waits until no process holds them any more.
func (s *State) ForgetPartitions(ctx context.Context, device string) error {
	for {
		err := forgetPartitions(device)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if pause(ctx) != nil {
			return fmt.Errorf("partitions of %s are still held: %w", device, err)
		}
	}
}

func forgetPartitions(device string) error {
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	return detachPartitions(disk, filepath.Base(device))
}

// blkpgPartition and blkpgArgument are the kernel's struct blkpg_partition and
// struct blkpg_ioctl_arg.
type blkpgPartition struct {
	_      [2]int64 // start and length: only to attach
	number int32
	_      [64 + 64]byte // names that the kernel does not use
	_      [4]byte
}

type blkpgArgument struct {
	operation, flags, dataLength int32
	data                         *blkpgPartition
}

func detachPartitions(disk *os.File, name string) error {
	files, err := filepath.Glob("/sys/block/" + name + "/" + name + "p*/partition")
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // gone meanwhile
		}
		number, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return fmt.Errorf("read %s: %w", f, err)
		}
		p := blkpgPartition{number: int32(number)}
		arg := blkpgArgument{operation: unix.BLKPG_DEL_PARTITION, dataLength: int32(unsafe.Sizeof(p)), data: &p}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 && errno != unix.ENXIO {
			return fmt.Errorf("detach partition %d of %s: %w", number, name, errno)
		}
	}
	return nil
}
