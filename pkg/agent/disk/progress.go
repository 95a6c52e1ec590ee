package disk

import (
	"context"
	"time"

	"k8s.io/klog/v2"
)

// progress is how far the zeroing of an extent is. A wipe's progress is kept in the volume's slot, so that the wipe
// continues there after a restart.
//
// Invariants:
//  1. 0 <= read <= zeroed <= the extent's length, all of them multiples of Alignment.
//  2. What is kept on the disk was flushed before. The method has done the first zeroed bytes, and the first read bytes
//     were read back as zeros.
//  3. A method starts at 0, and the disk has that progress before the method's first byte.
type progress struct {
	method           string
	zeroed, verified int64
}

// fits reports whether the progress is possible for an extent of that length. A slot may have any values.
func (p progress) fits(length int64) bool {
	return 0 <= p.verified && p.verified <= p.zeroed && p.zeroed <= length && p.zeroed%Alignment == 0 && p.verified%Alignment == 0
}

// interval bounds how much of a wipe is repeated after a restart, in bytes and in time.
type interval struct {
	bytes int64
	time  time.Duration
}

// progressKeeper keeps the progress of a wipe on the disk.
type progressKeeper struct {
	interval interval
	write    func(context.Context, progress) error
	// onDisk is what the disk has, and since when.
	onDisk progress
	since  time.Time
}

func (k *progressKeeper) due(p progress) bool {
	return p.zeroed+p.verified-k.onDisk.zeroed-k.onDisk.verified >= k.interval.bytes || time.Since(k.since) >= k.interval.time
}

// save writes the progress, which must have been flushed.
func (k *progressKeeper) save(ctx context.Context, p progress) error {
	if err := k.write(ctx, p); err != nil {
		return err
	}
	k.onDisk, k.since = p, time.Now()
	return nil
}

// advance reports how far the work is, and keeps it on the disk when that is due.
func (j *zeroJob) advance(ctx context.Context) error {
	j.report(j.progress.verified)
	if j.progressKeeper == nil || !j.progressKeeper.due(j.progress) {
		return nil
	}
	return j.flushAndSave(ctx)
}

// flushAndSave flushes what was zeroed, and keeps the progress on the disk. If the slot cannot be written, the wipe
// goes on. After a restart it repeats what was done since.
func (j *zeroJob) flushAndSave(ctx context.Context) error {
	if err := j.device.Sync(); err != nil {
		return err
	}
	if err := j.progressKeeper.save(ctx, j.progress); err != nil {
		klog.FromContext(ctx).Error(err, "The progress of a wipe is not kept", "device", j.device.path, "extent", j.extent)
		j.progressKeeper.since = time.Now()
	}
	return nil
}

// startMethod begins a method, at 0 unless it is the one that was in progress. The progress of another method must be
// gone from the disk before the first byte: it would count as this one's proof.
func (j *zeroJob) startMethod(ctx context.Context, method string) error {
	if j.progress.method == method {
		return nil
	}
	j.progress = progress{method: method}
	if j.progressKeeper == nil || j.progressKeeper.onDisk == (progress{}) {
		return nil
	}
	if err := j.progressKeeper.save(ctx, j.progress); err != nil {
		return err
	}
	return j.device.Sync()
}

// saveAtEnd keeps the progress of work that stopped with an error. If its caller gave up, that is all that is done.
// Otherwise it is nothing: the next try must zero again what did not read as zeros.
func (j *zeroJob) saveAtEnd(ctx context.Context, gaveUp bool) {
	keep := progress{}
	if gaveUp {
		keep = j.progress
	}
	if j.progressKeeper == nil || j.progressKeeper.onDisk == keep {
		return
	}
	ctx = context.WithoutCancel(ctx)
	var err error
	if gaveUp {
		err = j.flushAndSave(ctx)
	} else {
		err = j.progressKeeper.save(ctx, keep)
	}
	if err != nil {
		klog.FromContext(ctx).V(2).Info("The progress of a wipe is not kept", "device", j.device.path, "reason", err.Error())
	}
}
