package disk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// rung is one way to zero a run of bytes of a device.
type rung struct {
	name string
	step int64 // bytes at a time; ctx is looked at in between
	zero func(d *blockDevice, off, n int64) error
}

// ladder lists the ways to zero, the fastest first. BLKDISCARD is not among them: it
// promises nothing about what is read afterwards.
var ladder = []rung{
	// Zeroes and unmaps, or fails: it does not fall back to writing.
	{"PUNCH_HOLE", 16 << 30, punchHole},
	// The device's own command, or the kernel's writing of zeros.
	{"BLKZEROOUT", 256 << 20, zeroOut},
	{"overwrite", bounceBytes, overwrite},
}

func punchHole(d *blockDevice, off, n int64) error {
	return unix.Fallocate(d.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroOut(d *blockDevice, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd()), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	runtime.KeepAlive(&span)
	if errno != 0 {
		return errno
	}
	return nil
}

var zeroMiB [bounceBytes]byte

func overwrite(d *blockDevice, off, n int64) error {
	_, err := d.WriteAt(zeroMiB[:n], off)
	return err
}

// zero makes a part of the device read as zeros, by the first rung of the ladder that
// works and whose result is proven by reading.
func (d *blockDevice) zero(ctx context.Context, e extent.Extent) error {
	log := klog.FromContext(ctx)
	var failed []error
	for _, r := range ladder {
		err := d.climb(ctx, r, e)
		if err == nil {
			log.V(4).Info("Zeroed", "device", d.path, "extent", e, "by", r.name)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("zeroing %s: %w", d.path, ctx.Err())
		}
		failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			break // no device, no other way
		}
	}
	return fmt.Errorf("zeroing %s: %w", d.path, errors.Join(failed...))
}

func (d *blockDevice) climb(ctx context.Context, r rung, e extent.Extent) error {
	for off := e.Start; off < e.End; off += r.step {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.zero(d, off, min(r.step, e.End-off)); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	return d.sample(ctx, e)
}

// Samples are read at regular distances, and the ends, where file systems and
// signatures begin, as a whole.
const (
	sampleBytes = 4096
	sampleCount = 256
	sampleEnds  = 1 << 20
)

// sample reads parts of an extent from the medium and fails if one is not zero.
func (d *blockDevice) sample(ctx context.Context, e extent.Extent) error {
	end := min(sampleEnds, e.Len())
	spans := []extent.Extent{extent.New(e.Start, end), extent.New(e.End-end, end)}
	for step, off := max(e.Len()/sampleCount/sampleBytes, 1)*sampleBytes, e.Start; off < e.End; off += step {
		spans = append(spans, extent.New(off, sampleBytes))
	}
	buf := make([]byte, sampleEnds)
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:s.Len()]
		if _, err := d.ReadAt(b, s.Start); err != nil {
			return err
		}
		if !allZero(b) {
			return fmt.Errorf("%v does not read as zeros", s)
		}
	}
	return nil
}
