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

// rung is one way to zero a run of bytes of a device, or to do away with it.
type rung struct {
	name  string
	step  int64 // bytes at a time; ctx is looked at in between
	paced bool  // it writes the bytes, so that it keeps other I/O waiting
	do    func(d *blockDevice, off, n int64) error
}

var (
	// Zeroes and unmaps, or fails: it does not fall back to writing.
	punching = rung{"PUNCH_HOLE", 16 << 30, false, punchHole}
	// The device's own command, or the kernel's writing of zeros.
	zeroing     = rung{"BLKZEROOUT", 256 << 20, true, zeroOut}
	overwriting = rung{"overwrite", bounceBytes, true, overwrite}
	// Erases what the device has of it, and does not say what is read afterwards.
	secureDiscarding = rung{"BLKSECDISCARD", 1 << 30, false, secureDiscard}
)

// ladder lists the ways to zero, the fastest first. BLKDISCARD is not among them: it
// promises nothing about what is read afterwards.
var ladder = []rung{punching, zeroing, overwriting}

func punchHole(d *blockDevice, off, n int64) error {
	return unix.Fallocate(d.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroOut(d *blockDevice, off, n int64) error { return d.span(unix.BLKZEROOUT, off, n) }

func secureDiscard(d *blockDevice, off, n int64) error { return d.span(unix.BLKSECDISCARD, off, n) }

// span is an ioctl on a run of bytes.
func (d *blockDevice) span(request uintptr, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd()), request, uintptr(unsafe.Pointer(&span)))
	runtime.KeepAlive(&span)
	if errno != 0 {
		return errno
	}
	return nil
}

// zeroMiB is never written to.
var zeroMiB = alignedBuffer()

func overwrite(d *blockDevice, off, n int64) error { return d.writeAligned(zeroMiB[:n], off) }

// zero makes a part of the device read as zeros, by the first rung of the ladder that
// works and whose result is proven by reading, and says which.
func (d *blockDevice) zero(ctx context.Context, e extent.Extent, by effort) (method string, err error) {
	log := klog.FromContext(ctx)
	var failed []error
	for _, r := range ladder {
		by.tell(0)
		err := d.apply(ctx, r, e, by)
		if err == nil {
			err = d.sample(ctx, e, by)
		}
		if err == nil {
			log.V(4).Info("Zeroed", "device", d.path, "extent", e, "by", r.name)
			return r.name, nil
		}
		if ctx.Err() != nil {
			return r.name, fmt.Errorf("zeroing %s: %w", d.path, ctx.Err())
		}
		method = r.name
		failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			break // no device, no other way
		}
	}
	return method, fmt.Errorf("zeroing %s: %w", d.path, errors.Join(failed...))
}

// apply does to a part of the device what the rung does, and flushes.
func (d *blockDevice) apply(ctx context.Context, r rung, e extent.Extent, by effort) error {
	step := r.step
	if r.paced {
		step = by.step(step)
	}
	for off := e.Start; off < e.End; off += step {
		n := min(step, e.End-off)
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.paced {
			if err := by.wait(ctx, n); err != nil {
				return err
			}
		}
		if err := r.do(d, off, n); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		by.tell(off + n - e.Start)
	}
	return d.Sync()
}

// Samples are read at regular distances, and the ends, where file systems and
// signatures begin, as a whole.
const (
	sampleBytes = 4096
	sampleCount = 256
	sampleEnds  = bounceBytes
)

// sample reads parts of an extent from the medium and fails if one is not zero.
func (d *blockDevice) sample(ctx context.Context, e extent.Extent, by effort) error {
	end := min(sampleEnds, e.Len())
	spans := []extent.Extent{extent.New(e.Start, end), extent.New(e.End-end, end)}
	for step, off := max(e.Len()/sampleCount/sampleBytes, 1)*sampleBytes, e.Start; off < e.End; off += step {
		spans = append(spans, extent.New(off, sampleBytes))
	}
	buf := alignedBuffer()
	for _, s := range spans {
		if zero, err := d.readsZero(ctx, s, buf, by); err != nil {
			return err
		} else if !zero {
			return fmt.Errorf("%v does not read as zeros", s)
		}
	}
	return nil
}

// notZero reads all of an extent from the medium and returns the parts that are not zero, by
// MiB. It looks at one MiB while the next is read: else looking would cost a tenth of the time.
func (d *blockDevice) notZero(ctx context.Context, e extent.Extent, by effort) ([]extent.Extent, error) {
	type piece struct {
		extent.Extent
		data []byte
		err  error
	}
	ctx, stop := context.WithCancel(ctx)
	pieces, buffers := make(chan piece), make(chan []byte, 2)
	buffers <- alignedBuffer()
	buffers <- alignedBuffer()
	go func() {
		defer close(pieces)
		for off := e.Start; off < e.End; off += bounceBytes {
			p := piece{Extent: extent.New(off, min(bounceBytes, e.End-off))}
			select {
			case p.data = <-buffers:
			case <-ctx.Done():
				return
			}
			if p.err = by.wait(ctx, p.Len()); p.err == nil {
				p.err = d.readAligned(p.data[:p.Len()], off)
			}
			select {
			case pieces <- p:
			case <-ctx.Done():
				return
			}
			if p.err != nil {
				return
			}
		}
	}()
	// Waited for in any case: the device is closed afterwards.
	defer func() {
		stop()
		for range pieces {
			continue
		}
	}()
	var found []extent.Extent
	for p := range pieces {
		if p.err != nil {
			return nil, p.err
		}
		zero := allZero(p.data[:p.Len()])
		buffers <- p.data
		by.tell(p.End - e.Start)
		if zero {
			continue
		}
		if last := len(found) - 1; last >= 0 && found[last].End == p.Start {
			found[last].End = p.End
			continue
		}
		found = append(found, p.Extent)
	}
	return found, ctx.Err()
}

// readsZero reads an extent from the medium. buf is aligned and has room for it.
func (d *blockDevice) readsZero(ctx context.Context, e extent.Extent, buf []byte, by effort) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := by.wait(ctx, e.Len()); err != nil {
		return false, err
	}
	b := buf[:e.Len()]
	if err := d.readAligned(b, e.Start); err != nil {
		return false, err
	}
	return allZero(b), nil
}
