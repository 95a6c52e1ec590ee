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

// defaultWipeMethods are the methods for real disks, the fastest first.
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
func (j *zeroJob) forPart(part extent.Extent) *zeroJob {
	return &zeroJob{device: j.device, extent: part, rateLimit: j.rateLimit, methods: j.methods}
}

func (j *zeroJob) report(read int64) {
	switch {
	case j.onProgress == nil:
	case j.verifiesAll:
		j.onProgress((j.progress.zeroed + read) / 2)
	default:
		j.onProgress(j.progress.zeroed)
	}
}

// zero makes the extent read as zeros, and returns the method. That is the first one that works and whose result is
// verified by reading. It begins with the method that was in progress.
func (j *zeroJob) zero(ctx context.Context) (name string, err error) {
	log := klog.FromContext(ctx)
	methods := j.methods.zero
	for i, m := range methods {
		if m.name == j.progress.method {
			methods = methods[i:]
			break
		}
	}
	var failed []error
	for _, m := range methods {
		name = m.name
		err := j.runMethod(ctx, m)
		if err == nil {
			err = j.verifySamples(ctx)
		}
		if err == nil {
			log.V(4).Info("Zeroed", "device", j.device.path, "extent", j.extent, "by", m.name)
			return m.name, nil
		}
		if ctx.Err() != nil {
			return m.name, fmt.Errorf("zeroing %s: %w", j.device.path, ctx.Err())
		}
		failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			break // without a device no other method works
		}
	}
	return name, fmt.Errorf("zeroing %v of %s: %w", j.extent, j.device.path, errors.Join(failed...))
}

// zeroUnverified is zero without a check of the result. The caller reads all of the extent back.
func (j *zeroJob) zeroUnverified(ctx context.Context) error {
	var failed []error
	for _, m := range j.methods.zero {
		err := j.runMethod(ctx, m)
		if err == nil || ctx.Err() != nil {
			return err
		}
		failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
	}
	return errors.Join(failed...)
}

// runMethod runs the method on the extent, from the present progress on, and flushes.
func (j *zeroJob) runMethod(ctx context.Context, m method) error {
	if err := j.startMethod(ctx, m.name); err != nil {
		return err
	}
	step := j.rateLimit.step(m.maxStep)
	j.report(j.progress.verified)
	for j.progress.zeroed < j.extent.Len() {
		off, n := j.extent.Start+j.progress.zeroed, min(step, j.extent.Len()-j.progress.zeroed)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.rateLimit.wait(ctx, n); err != nil {
			return err
		}
		if err := m.do(j.device, off, n); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		j.progress.zeroed += n
		if err := j.advance(ctx); err != nil {
			return err
		}
	}
	return j.device.Sync()
}

// Samples are read at regular distances. The ends, where file systems and signatures begin, are read as a whole.
const (
	sampleBytes = 4096
	sampleCount = 256
	sampleEnds  = bounceBytes
)

// verifySamples reads parts of the extent from the medium, and fails if one is not zero.
func (j *zeroJob) verifySamples(ctx context.Context) error {
	e := j.extent
	end := min(sampleEnds, e.Len())
	spans := []extent.Extent{extent.New(e.Start, end), extent.New(e.End-end, end)}
	for step, off := max(e.Len()/sampleCount/sampleBytes, 1)*sampleBytes, e.Start; off < e.End; off += step {
		spans = append(spans, extent.New(off, sampleBytes))
	}
	buf := alignedBuffer()
	for _, s := range spans {
		if zero, err := j.readsZero(ctx, s, buf); err != nil {
			return err
		} else if !zero {
			return fmt.Errorf("%v does not read as zeros", s)
		}
	}
	return nil
}

// findNonZero reads the extent from the medium, from the present progress on, and returns the parts that are not zero,
// by MiB. It checks one MiB while the next is read. Otherwise checking would take a tenth of the time.
func (j *zeroJob) findNonZero(ctx context.Context) ([]extent.Extent, error) {
	type piece struct {
		extent.Extent
		data []byte
		err  error
	}
	ctx, stop := context.WithCancel(ctx)
	pieces, buffers := make(chan piece), make(chan []byte, 2)
	buffers <- alignedBuffer()
	buffers <- alignedBuffer()
	begin := j.extent.Start + j.progress.verified
	go func() {
		defer close(pieces)
		for off := begin; off < j.extent.End; off += bounceBytes {
			p := piece{Extent: extent.New(off, min(bounceBytes, j.extent.End-off))}
			select {
			case p.data = <-buffers:
			case <-ctx.Done():
				return
			}
			if p.err = j.rateLimit.wait(ctx, p.Len()); p.err == nil {
				p.err = j.device.readAligned(p.data[:p.Len()], off)
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
			j.progress.verified = p.End - j.extent.Start
			if err := j.advance(ctx); err != nil {
				return nil, err
			}
			continue
		case zero: // the parts before it must still be zeroed
		case last >= 0 && found[last].End == p.Start:
			found[last].End = p.End
		default:
			found = append(found, p.Extent)
		}
		j.report(p.End - j.extent.Start)
	}
	return found, ctx.Err()
}

// readsZero reads an extent from the medium, and reports whether it is zero. buf is aligned and has room for it.
func (j *zeroJob) readsZero(ctx context.Context, e extent.Extent, buf []byte) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := j.rateLimit.wait(ctx, e.Len()); err != nil {
		return false, err
	}
	b := buf[:e.Len()]
	if err := j.device.readAligned(b, e.Start); err != nil {
		return false, err
	}
	return allZero(b), nil
}
