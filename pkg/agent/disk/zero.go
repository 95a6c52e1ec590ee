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
	name    string
	maxStep int64 // bytes at a time, at most; ctx is checked in between
	do      func(d *blockDevice, off, n int64) error
}

const (
	methodPunch         = "PUNCH_HOLE"
	methodZeroOut       = "BLKZEROOUT"
	methodOverwrite     = "overwrite"
	methodSecureDiscard = "BLKSECDISCARD"
)

// wipeMethods has the ways in which a disk zeroes and erases.
type wipeMethods struct {
	// zero lists the ways to zero, the fastest first. BLKDISCARD is not among them: it promises nothing about later
	// reads.
	zero []method
	// overwrite is the only way of the policy Overwrite.
	overwrite method
	// secureDiscard erases the device's copies of the bytes. It does not define what is read afterwards.
	secureDiscard method
	// saveInterval is how often a wipe keeps its progress. Each time costs a flush and the write of a sector.
	saveInterval interval
}

func defaultWipeMethods() *wipeMethods {
	overwriting := method{methodOverwrite, bounceBytes, overwrite}
	return &wipeMethods{
		zero: []method{
			// Zeroes and unmaps, or fails: it does not fall back to writing.
			{methodPunch, 1 << 30, punchHole},
			// The device's own command, or the kernel writes zeros.
			{methodZeroOut, 256 << 20, zeroOut},
			overwriting,
		},
		overwrite:     overwriting,
		secureDiscard: method{methodSecureDiscard, 1 << 30, secureDiscard},
		saveInterval:  interval{1 << 30, 10 * time.Second},
	}
}

func punchHole(d *blockDevice, off, n int64) error {
	return unix.Fallocate(d.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroOut(d *blockDevice, off, n int64) error { return d.ioctlRange(unix.BLKZEROOUT, off, n) }

func secureDiscard(d *blockDevice, off, n int64) error {
	return d.ioctlRange(unix.BLKSECDISCARD, off, n)
}

// ioctlRange is an ioctl on a run of bytes.
func (d *blockDevice) ioctlRange(request uintptr, off, n int64) error {
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

// zeroJob is the zeroing of one extent of a disk: for a wipe, or for the volume that will get it.
type zeroJob struct {
	device    *blockDevice
	extent    extent.Extent
	rateLimit rateLimit
	methods   *wipeMethods
	// onProgress, if set, is called with the number of bytes done. If verifiesAll is set the work goes over the extent
	// twice, and each pass counts half.
	onProgress  func(done int64)
	verifiesAll bool
	// progress is the progress. keeper, if set, keeps it on the disk.
	progress       progress
	progressKeeper *progressKeeper
}

// forPart is the same work on a part of the extent, from its beginning.
func (w *zeroJob) forPart(part extent.Extent) *zeroJob {
	return &zeroJob{device: w.device, extent: part, rateLimit: w.rateLimit, methods: w.methods}
}

func (w *zeroJob) report(read int64) {
	switch {
	case w.onProgress == nil:
	case w.verifiesAll:
		w.onProgress((w.progress.zeroed + read) / 2)
	default:
		w.onProgress(w.progress.zeroed)
	}
}

// zero makes the extent read as zeros, and returns the method. That is the first one that works and whose result is
// verified by reading. It begins with the method that was in progress.
func (w *zeroJob) zero(ctx context.Context) (name string, err error) {
	log := klog.FromContext(ctx)
	methods := w.methods.zero
	for i, m := range methods {
		if m.name == w.progress.method {
			methods = methods[i:]
			break
		}
	}
	var failed []error
	for _, m := range methods {
		name = m.name
		err := w.runMethod(ctx, m)
		if err == nil {
			err = w.verifySamples(ctx)
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

// runMethod runs the method on the extent, from the present progress on, and flushes.
func (w *zeroJob) runMethod(ctx context.Context, m method) error {
	if err := w.startMethod(ctx, m.name); err != nil {
		return err
	}
	step := w.rateLimit.step(m.maxStep)
	w.report(w.progress.verified)
	for w.progress.zeroed < w.extent.Len() {
		off, n := w.extent.Start+w.progress.zeroed, min(step, w.extent.Len()-w.progress.zeroed)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.rateLimit.wait(ctx, n); err != nil {
			return err
		}
		if err := m.do(w.device, off, n); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		w.progress.zeroed += n
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

// verifySamples reads parts of the extent from the medium, and fails if one is not zero.
func (w *zeroJob) verifySamples(ctx context.Context) error {
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

// findNonZero reads the extent from the medium, from the present progress on, and returns the parts that are not zero,
// by MiB. It checks one MiB while the next is read. Otherwise checking would take a tenth of the time.
func (w *zeroJob) findNonZero(ctx context.Context) ([]extent.Extent, error) {
	type piece struct {
		extent.Extent
		data []byte
		err  error
	}
	ctx, stop := context.WithCancel(ctx)
	pieces, buffers := make(chan piece), make(chan []byte, 2)
	buffers <- alignedBuffer()
	buffers <- alignedBuffer()
	begin := w.extent.Start + w.progress.verified
	go func() {
		defer close(pieces)
		for off := begin; off < w.extent.End; off += bounceBytes {
			p := piece{Extent: extent.New(off, min(bounceBytes, w.extent.End-off))}
			select {
			case p.data = <-buffers:
			case <-ctx.Done():
				return
			}
			if p.err = w.rateLimit.wait(ctx, p.Len()); p.err == nil {
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
			w.progress.verified = p.End - w.extent.Start
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
func (w *zeroJob) readsZero(ctx context.Context, e extent.Extent, buf []byte) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := w.rateLimit.wait(ctx, e.Len()); err != nil {
		return false, err
	}
	b := buf[:e.Len()]
	if err := w.device.readAligned(b, e.Start); err != nil {
		return false, err
	}
	return allZero(b), nil
}
