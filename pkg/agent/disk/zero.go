package disk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// method is one way to zero a run of bytes of a device, or to have the device erase it.
type method struct {
	name string
	step int64 // bytes at a time, at most; ctx is checked in between
	do   func(d *blockDevice, off, n int64) error
}

const (
	methodPunch         = "PUNCH_HOLE"
	methodZeroOut       = "BLKZEROOUT"
	methodOverwrite     = "overwrite"
	methodSecureDiscard = "BLKSECDISCARD"
)

// wipeConfig has the ways in which a disk zeroes and erases.
type wipeConfig struct {
	// zero lists the ways to zero, the fastest first. BLKDISCARD is not among them: it promises nothing about later
	// reads.
	zero []method
	// overwrite is the only way of the policy Overwrite.
	overwrite method
	// secureDiscard erases the device's copies of the bytes. It does not define what is read afterwards.
	secureDiscard method
	// keepEvery is how often a wipe keeps its progress. Each time costs a flush and the write of a sector.
	keepEvery interval
}

func defaultWipeConfig() *wipeConfig {
	overwriting := method{methodOverwrite, bounceBytes, overwrite}
	return &wipeConfig{
		zero: []method{
			// Zeroes and unmaps, or fails: it does not fall back to writing.
			{methodPunch, 1 << 30, punchHole},
			// The device's own command, or the kernel writes zeros.
			{methodZeroOut, 256 << 20, zeroOut},
			overwriting,
		},
		overwrite:     overwriting,
		secureDiscard: method{methodSecureDiscard, 1 << 30, secureDiscard},
		keepEvery:     interval{1 << 30, 10 * time.Second},
	}
}

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

// work is the zeroing of one extent of a disk: for a wipe, or for the volume that will get it.
type work struct {
	device *blockDevice
	extent extent.Extent
	limit  limit
	config *wipeConfig
	// tell, if set, is called with the number of bytes done. If readsAll is set the work goes over the extent twice,
	// and each pass counts half.
	tell     func(done int64)
	readsAll bool
	// at is the progress. keeper, if set, keeps it on the disk.
	at     progress
	keeper *keeper
}

// of is the same work on a part of the extent, from its beginning.
func (w *work) of(part extent.Extent) *work {
	return &work{device: w.device, extent: part, limit: w.limit, config: w.config}
}

func (w *work) report(read int64) {
	switch {
	case w.tell == nil:
	case w.readsAll:
		w.tell((w.at.zeroed + read) / 2)
	default:
		w.tell(w.at.zeroed)
	}
}

// zero makes the extent read as zeros, and returns the method. That is the first one that works and whose result is
// verified by reading. It begins with the method that was in progress.
func (w *work) zero(ctx context.Context) (name string, err error) {
	log := klog.FromContext(ctx)
	methods := w.config.zero
	for i, m := range methods {
		if m.name == w.at.method {
			methods = methods[i:]
			break
		}
	}
	var failed []error
	for _, m := range methods {
		name = m.name
		err := w.apply(ctx, m)
		if err == nil {
			err = w.sample(ctx)
		}
		if err == nil {
			log.V(4).Info("Zeroed", "device", w.device.path, "extent", w.extent, "by", m.name)
			return m.name, nil
		}
		if ctx.Err() != nil {
			return m.name, fmt.Errorf("zeroing %s: %w", w.device.path, ctx.Err())
		}
		failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			break // without a device no other method works
		}
	}
	return name, fmt.Errorf("zeroing %v of %s: %w", w.extent, w.device.path, errors.Join(failed...))
}

// apply runs the method on the extent, from the present progress on, and flushes.
func (w *work) apply(ctx context.Context, m method) error {
	if err := w.start(ctx, m.name); err != nil {
		return err
	}
	step := w.limit.step(m.step)
	w.report(w.at.read)
	for w.at.zeroed < w.extent.Len() {
		off, n := w.extent.Start+w.at.zeroed, min(step, w.extent.Len()-w.at.zeroed)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.limit.wait(ctx, n); err != nil {
			return err
		}
		if err := m.do(w.device, off, n); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		w.at.zeroed += n
		if err := w.advance(ctx); err != nil {
			return err
		}
	}
	return w.device.Sync()
}

// Samples are read at regular distances. The ends, where file systems and signatures begin, are read as a whole.
const (
	sampleBytes = 4096
	sampleCount = 256
	sampleEnds  = bounceBytes
)

// sample reads parts of the extent from the medium, and fails if one is not zero.
func (w *work) sample(ctx context.Context) error {
	e := w.extent
	end := min(sampleEnds, e.Len())
	spans := []extent.Extent{extent.New(e.Start, end), extent.New(e.End-end, end)}
	for step, off := max(e.Len()/sampleCount/sampleBytes, 1)*sampleBytes, e.Start; off < e.End; off += step {
		spans = append(spans, extent.New(off, sampleBytes))
	}
	buf := alignedBuffer()
	for _, s := range spans {
		if zero, err := w.readsZero(ctx, s, buf); err != nil {
			return err
		} else if !zero {
			return fmt.Errorf("%v does not read as zeros", s)
		}
	}
	return nil
}

// notZero reads the extent from the medium, from the present progress on, and returns the parts that are not zero, by
// MiB. It checks one MiB while the next is read. Otherwise checking would take a tenth of the time.
func (w *work) notZero(ctx context.Context) ([]extent.Extent, error) {
	type piece struct {
		extent.Extent
		data []byte
		err  error
	}
	ctx, stop := context.WithCancel(ctx)
	pieces, buffers := make(chan piece), make(chan []byte, 2)
	buffers <- alignedBuffer()
	buffers <- alignedBuffer()
	begin := w.extent.Start + w.at.read
	go func() {
		defer close(pieces)
		for off := begin; off < w.extent.End; off += bounceBytes {
			p := piece{Extent: extent.New(off, min(bounceBytes, w.extent.End-off))}
			select {
			case p.data = <-buffers:
			case <-ctx.Done():
				return
			}
			if p.err = w.limit.wait(ctx, p.Len()); p.err == nil {
				p.err = w.device.readAligned(p.data[:p.Len()], off)
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
		switch last := len(found) - 1; {
		case zero && len(found) == 0:
			w.at.read = p.End - w.extent.Start
			if err := w.advance(ctx); err != nil {
				return nil, err
			}
			continue
		case zero: // the parts before it must still be zeroed
		case last >= 0 && found[last].End == p.Start:
			found[last].End = p.End
		default:
			found = append(found, p.Extent)
		}
		w.report(p.End - w.extent.Start)
	}
	return found, ctx.Err()
}

// readsZero reads an extent from the medium, and reports whether it is zero. buf is aligned and has room for it.
func (w *work) readsZero(ctx context.Context, e extent.Extent, buf []byte) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := w.limit.wait(ctx, e.Len()); err != nil {
		return false, err
	}
	b := buf[:e.Len()]
	if err := w.device.readAligned(b, e.Start); err != nil {
		return false, err
	}
	return allZero(b), nil
}
