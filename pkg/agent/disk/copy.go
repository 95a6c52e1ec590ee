package disk

import (
	"bytes"
	"context"
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
)

// copyJob copies the bytes of a volume to the beginning of the target, in windows. A window is read from the source,
// written to the target, flushed, and read back from the target. What is read back must be what the source has, so a
// write that the device dropped is noticed.
//
// Chunks of zeros are not written. If the target does not have the zeros, they are made by the fastest method, and read
// back like all others. What follows in a longer target is zeroed at the end.
//
// With compareFirst, the target may hold a part of the copy. Then each chunk is compared first, and written only if it
// differs. So a move that was cut short needs no progress on the disk, and the source may have changed in between.
type copyJob struct {
	source, target copySide
	compareFirst   bool
	// rewriteAll is set after a failed flush: the device may show bytes that it will lose, so nothing that it shows
	// counts.
	rewriteAll bool
	// zero makes a part of the target's device zero, as far as the device is to be believed.
	zero func(ctx context.Context, part extent.Extent) error
	// zeroTail makes the part behind the copy zero, and checks that. It is nil if that part is known to be zero.
	zeroTail func(ctx context.Context, tail extent.Extent, progress func(done int64)) error
	// onProgress, if set, is called with the number of the target's bytes that are done.
	onProgress func(done int64)
	// close releases the devices.
	close func() error
	// flushFailed is set if a flush has failed, or may have. The next try must write everything again.
	flushFailed bool

	window, scratch []byte
}

const (
	// defaultCopyWindow is what is copied up to a flush. Its bytes are in memory until they were read back. A shorter
	// window has more flushes.
	defaultCopyWindow = 32 * Alignment
	// copyChunk is what is compared, and written or zeroed, as a whole.
	copyChunk = Alignment
)

// copySide is the source or the target of a copy. Offsets count from the beginning of its first extent, and go on in
// the further ones.
type copySide struct {
	name   string // in errors
	device device
	path   string
	extent extent.Extent
	// rateLimit is that of the disk.
	rateLimit rateLimit
	// further are the extents of a source of several pieces, after the first.
	further []extent.Extent
}

// length of all extents together.
func (s copySide) length() int64 {
	total := s.extent.Len()
	for _, e := range s.further {
		total += e.Len()
	}
	return total
}

// place is where on the disk an offset lies. All extents are aligned, so a chunk lies in one.
func (s copySide) place(off int64) int64 {
	e := s.extent
	for _, next := range s.further {
		if off < e.Len() {
			break
		}
		off, e = off-e.Len(), next
	}
	return e.Start + off
}

func newCopyJob(source, target copySide, window int64) *copyJob {
	return &copyJob{source: source, target: target, window: alignedBytes(int(min(window, source.length()))), scratch: alignedBytes(int(copyChunk))}
}

func (s copySide) read(b []byte, off int64) error {
	_, err := s.device.ReadAt(b, s.place(off))
	return s.wrap(err, "reading", off, int64(len(b)))
}

func (s copySide) write(b []byte, off int64) error {
	_, err := s.device.WriteAt(b, s.place(off))
	return s.wrap(err, "writing", off, int64(len(b)))
}

// wrap says which side and which bytes of it an error concerns.
func (s copySide) wrap(err error, doing string, off, n int64) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s the %s, %v of %s: %w", doing, s.name, extent.New(s.place(off), n), s.path, err)
}

// run makes the target what the source is.
func (j *copyJob) run(ctx context.Context) error {
	length := j.source.length()
	for off := int64(0); off < length; {
		window := j.window[:min(int64(len(j.window)), length-off)]
		if err := j.copyWindow(ctx, off, window); err != nil {
			return err
		}
		off += int64(len(window))
		j.report(off)
	}
	if tail := (extent.Extent{Start: j.target.extent.Start + length, End: j.target.extent.End}); !tail.Empty() && j.zeroTail != nil {
		if err := j.zeroTail(ctx, tail, func(done int64) { j.report(length + done) }); err != nil {
			return j.target.wrap(err, "zeroing the end of", length, tail.Len())
		}
	}
	// Also if nothing was written: what an earlier try has written may be in the device's cache.
	if err := j.flush(); err != nil {
		return err
	}
	j.report(j.target.extent.Len())
	return nil
}

func (j *copyJob) report(done int64) {
	if j.onProgress != nil {
		j.onProgress(done)
	}
}

// copyWindow copies the part of the source that begins at off, through window.
func (j *copyJob) copyWindow(ctx context.Context, off int64, window []byte) error {
	for at := int64(0); at < int64(len(window)); at += copyChunk {
		if err := j.source.pace(ctx); err != nil {
			return err
		}
		if err := j.source.read(window[at:at+copyChunk], off+at); err != nil {
			return err
		}
	}
	toWrite, toZero, err := j.compareWindow(ctx, off, window)
	if err != nil {
		return err
	}
	// First of all the zeros: zeroing has flushes of its own, which must not be for other bytes.
	for _, part := range toZero.All() {
		if err := j.zero(ctx, extent.New(j.target.extent.Start+off+part.Start, part.Len())); err != nil {
			j.flushFailed = ctx.Err() == nil
			return j.target.wrap(err, "zeroing", off+part.Start, part.Len())
		}
	}
	wrong, err := j.findWrong(ctx, off, window, toZero)
	if err != nil {
		return err
	}
	// A device whose zeros are none gets them written.
	toWrite = toWrite.Union(wrong)
	if toWrite.Len() == 0 {
		return nil
	}
	for _, part := range toWrite.All() {
		for at := part.Start; at < part.End; at += copyChunk {
			if err := j.target.pace(ctx); err != nil {
				return err
			}
			if err := j.target.write(window[at:at+copyChunk], off+at); err != nil {
				return err
			}
		}
	}
	if err := j.flush(); err != nil {
		return err
	}
	wrong, err = j.findWrong(ctx, off, window, toWrite)
	if err == nil && wrong.Len() > 0 {
		first := wrong.At(0)
		err = fmt.Errorf("the target, %v of %s, does not read back as written", extent.New(j.target.extent.Start+off+first.Start, first.Len()), j.target.path)
	}
	return err
}

// compareWindow finds the parts of the window that the target does not have. Without compareFirst that is all but the
// zeros, which may be there.
func (j *copyJob) compareWindow(ctx context.Context, off int64, window []byte) (toWrite, toZero extent.Set, err error) {
	for at := int64(0); at < int64(len(window)); at += copyChunk {
		chunk, part := window[at:at+copyChunk], extent.New(at, copyChunk)
		zero := allZero(chunk)
		if !j.rewriteAll && (zero || j.compareFirst) {
			same, err := j.targetHas(ctx, off+at, chunk)
			if err != nil {
				return extent.Set{}, extent.Set{}, err
			}
			if same {
				continue
			}
		}
		if zero {
			toZero = toZero.Add(part)
		} else {
			toWrite = toWrite.Add(part)
		}
	}
	return toWrite, toZero, nil
}

// findWrong reads parts of the window back, and returns those that the target does not have.
func (j *copyJob) findWrong(ctx context.Context, off int64, window []byte, parts extent.Set) (wrong extent.Set, err error) {
	for _, part := range parts.All() {
		for at := part.Start; at < part.End; at += copyChunk {
			same, err := j.targetHas(ctx, off+at, window[at:at+copyChunk])
			if err != nil {
				return extent.Set{}, err
			}
			if !same {
				wrong = wrong.Add(extent.New(at, copyChunk))
			}
		}
	}
	return wrong, nil
}

// targetHas reads a chunk from the target, and compares it.
func (j *copyJob) targetHas(ctx context.Context, off int64, chunk []byte) (bool, error) {
	if err := j.target.pace(ctx); err != nil {
		return false, err
	}
	if err := j.target.read(j.scratch, off); err != nil {
		return false, err
	}
	return bytes.Equal(j.scratch, chunk), nil
}

// pace waits until the next chunk may be read or written.
func (s copySide) pace(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.rateLimit.wait(ctx, copyChunk)
}

func (j *copyJob) flush() error {
	if err := j.target.device.Sync(); err != nil {
		j.flushFailed = true
		return j.target.wrap(err, "flushing", 0, j.target.extent.Len())
	}
	return nil
}

// directDevice is a device whose callers have memory that is aligned for O_DIRECT.
type directDevice struct{ *blockDevice }

func (d directDevice) ReadAt(b []byte, off int64) (int, error) {
	if err := d.readAligned(b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (d directDevice) WriteAt(b []byte, off int64) (int, error) {
	if err := d.writeAligned(b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}
