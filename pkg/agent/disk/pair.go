package disk

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"slices"

	"k8s.io/klog/v2"
)

// copyPair is the two copies of a disk's table on the medium. It knows bytes, and neither entries nor phases. Pods wait
// for two of its writes, so the copies can be written at different times. The state says which copy holds what:
//
//	state            primary                      backup                       left to do
//	in sync          the table                    the table                    nothing
//	backup pending   the table, not read back     the table before             write the backup, read both back
//	backup ahead     the table                    the table that is prepared   nothing
//
// Each operation leads to the following. "completed" means that the backup is completed first, and the state is in
// sync:
//
//	state            put         putPrimaryFirst              prepare        completeBackup   undoPrepare
//	in sync          in sync     backup pending               backup ahead   in sync          in sync
//	backup pending   completed   completed, backup pending    backup ahead   in sync          completed
//	backup ahead     in sync     in sync, like put            backup ahead   backup ahead     in sync
//
// Invariants, asserted by TestCopyPair:
//  1. At every moment one copy is intact on the medium.
//  2. The primary counts. If it is lost, the backup counts. It holds the table. While the write of a new volume's
//     backup is pending it holds the table before, and while a mkfs has not failed the prepared table.
//  3. In state in sync both were flushed and read back.
//  4. After an error that wraps ErrOutOfService it is unknown what the medium holds, and nothing more is written. After
//     any other error nothing was written.
type copyPair struct {
	dev   device
	l     layout
	state pairState
	// onDisk is what the copies hold. In state backup pending it has what the backup will hold.
	onDisk copies
	// unverified was written and flushed, or is in pending, and was not read back. completeBackup writes pending.
	unverified, pending []batch
	// Room for the next copies and for what is read back, so that a change allocates nothing of that size.
	spareCopies copies
	scratch     []byte
}

// pairState says which copy holds what, see copyPair.
type pairState string

const (
	pairInSync        pairState = "in sync"
	pairBackupPending pairState = "backup pending"
	pairBackupAhead   pairState = "backup ahead"
)

// newCopyPair is the copies of a table that the medium has, or will get, in state in sync.
func newCopyPair(dev device, l layout, c tableCopy) copyPair {
	p := copyPair{dev: dev, l: l, state: pairInSync, onDisk: renderCopies(l, c)}
	p.spareCopies.primary = sectorWrite{p.onDisk.primary.off, make([]byte, l.copyBytes())}
	p.spareCopies.backup = sectorWrite{p.onDisk.backup.off, make([]byte, l.copyBytes())}
	return p
}

// current is the table's bytes. They are the pair's: the next change may overwrite them.
func (p *copyPair) current() tableCopy {
	header, array := p.l.split(p.l.primary(), p.onDisk.primary.data)
	return tableCopy{id: decodeGUID(header[56:72]).String(), array: array}
}

// entryChange is an entry of the table with the bytes that it will have.
type entryChange struct {
	index int
	bytes []byte
}

// put changes entries in both copies, all of them or none. onChecked, if set, is called after the medium was checked,
// before anything else is written.
func (p *copyPair) put(ctx context.Context, changes []entryChange, onChecked func() error) error {
	if err := p.beforePut(ctx, onChecked); err != nil {
		return err
	}
	to := p.renderWith(changes...)
	// Until the backup is complete the primary is the old one. From then on the backup is the new one.
	if err := p.write(ctx, []batch{p.l.diff(p.onDisk.backup, to.backup), p.l.diff(p.onDisk.primary, to.primary)}); err != nil {
		return err
	}
	p.state, p.onDisk, p.spareCopies = pairInSync, to, p.onDisk
	return nil
}

// putPrimaryFirst is put, but returns when the primary is on the medium. completeBackup does the rest.
func (p *copyPair) putPrimaryFirst(ctx context.Context, changes []entryChange, onChecked func() error) error {
	if p.state == pairBackupAhead {
		// If the primary were lost meanwhile, the change that is prepared in the backup would take effect.
		return p.put(ctx, changes, onChecked)
	}
	if err := p.beforePut(ctx, onChecked); err != nil {
		return err
	}
	to := p.renderWith(changes...)
	batches := []batch{p.l.diff(p.onDisk.primary, to.primary), p.l.diff(p.onDisk.backup, to.backup)}
	if err := p.tryWrite(batches[:1]); err != nil {
		if err := p.rewriteAll(ctx, batches, err); err != nil {
			return err
		}
		p.state, p.onDisk, p.spareCopies = pairInSync, to, p.onDisk
		return nil
	}
	p.unverified, p.pending = batches, batches[1:]
	p.state, p.onDisk, p.spareCopies = pairBackupPending, to, p.onDisk
	return nil
}

// prepare writes a likely next change into the backup. The table does not change, because the primary counts. A put of
// the same change then only writes the primary. Any other change writes the backup again.
func (p *copyPair) prepare(ctx context.Context, change entryChange) error {
	if p.state == pairBackupPending && p.checkUnchanged(p.primaryHeader()) == nil {
		return p.prepareFromPending(ctx, change)
	}
	if err := p.beforeChange(ctx); err != nil {
		return err
	}
	return p.writeBackup(ctx, p.renderWith(change).backup, pairBackupAhead)
}

// prepareFromPending is prepare in state backup pending. The backup changes from the table before to the prepared one,
// and never holds the present table.
func (p *copyPair) prepareFromPending(ctx context.Context, change entryChange) error {
	primary, meant := p.unverified[0], p.pending[0]
	to := p.renderWith(change).backup
	backup := p.l.diff(p.onDisk.backup, to)
	// The medium does not have the pending change yet.
	for _, w := range meant.changed {
		if !slices.ContainsFunc(backup.changed, func(c sectorWrite) bool { return c.off <= w.off && w.end() <= c.end() }) {
			backup.changed = append(backup.changed, sectorWrite{w.off, to.data[w.off-to.off:][:len(w.data)]})
		}
	}
	p.unverified, p.pending = []batch{primary, backup}, []batch{backup}
	if err := p.completeBackup(ctx); err != nil {
		return err
	}
	p.state, p.onDisk.backup, p.spareCopies.backup = pairBackupAhead, p.spareCopies.backup, p.onDisk.backup
	return nil
}

// undoPrepare undoes what prepare wrote.
func (p *copyPair) undoPrepare(ctx context.Context) error {
	if p.state != pairBackupAhead {
		return nil
	}
	if err := p.beforeChange(ctx); err != nil {
		return err
	}
	return p.writeBackup(ctx, p.renderWith().backup, pairInSync)
}

// completeBackup finishes what putPrimaryFirst began.
func (p *copyPair) completeBackup(ctx context.Context) error {
	if p.state != pairBackupPending {
		return nil
	}
	err := p.tryWrite(p.pending)
	if err == nil {
		err = p.readBack(p.unverified)
	}
	if err != nil {
		if err := p.rewriteAll(ctx, p.unverified, err); err != nil {
			return err
		}
	}
	p.state, p.unverified, p.pending = pairInSync, nil, nil
	return nil
}

// writeBackup writes the backup, which renderWith has rendered, and changes the state to next.
func (p *copyPair) writeBackup(ctx context.Context, to sectorWrite, next pairState) error {
	if err := p.write(ctx, []batch{p.l.diff(p.onDisk.backup, to)}); err != nil {
		return err
	}
	p.state, p.onDisk.backup, p.spareCopies.backup = next, p.spareCopies.backup, p.onDisk.backup
	return nil
}

// beforeChange completes the backup, and checks that the table on the medium is unchanged. A tool may have added a
// partition: the next write would remove it, and give its extent to the next volume. The header is enough, because it
// has the checksum of the entries. Entries that changed without the header are damaged, and found when everything is
// read back.
func (p *copyPair) beforeChange(ctx context.Context) error {
	if err := p.completeBackup(ctx); err != nil {
		return err
	}
	return p.checkUnchanged(p.primaryHeader())
}

// beforePut is beforeChange, and then calls onChecked, if set.
func (p *copyPair) beforePut(ctx context.Context, onChecked func() error) error {
	if err := p.beforeChange(ctx); err != nil || onChecked == nil {
		return err
	}
	return onChecked()
}

// primaryHeader is the header of the primary, as the medium should have it.
func (p *copyPair) primaryHeader() sectorWrite {
	header, _ := p.l.split(p.l.primary(), p.onDisk.primary.data)
	return sectorWrite{p.l.offset(p.l.primary().headerLBA), header}
}

// checkUnchanged checks that parts of the table on the medium are what the pair has.
func (p *copyPair) checkUnchanged(parts ...sectorWrite) error {
	for _, part := range parts {
		if err := p.verify(part); err != nil {
			return fmt.Errorf("%w: the partition table is not what it was: %w; open the disk again to take it as it is now", ErrOutOfService, err)
		}
	}
	return nil
}

// renderWith renders the present copies with the bytes of some entries replaced, into the spare.
func (p *copyPair) renderWith(changes ...entryChange) copies {
	now := p.current()
	for _, to := range []struct {
		location
		sectorWrite
	}{{p.l.primary(), p.spareCopies.primary}, {p.l.backup(), p.spareCopies.backup}} {
		header, array := p.l.split(to.location, to.data)
		copy(array, now.array)
		for _, c := range changes {
			copy(array[(c.index-1)*entrySize:c.index*entrySize], c.bytes)
		}
		encodeHeader(header, p.l, to.location, now.id, crc32.ChecksumIEEE(array))
	}
	return p.spareCopies
}

// write brings the batches to the medium, first only what they change, and reads everything back. After an error that
// wraps ErrOutOfService the state of the disk is unknown.
func (p *copyPair) write(ctx context.Context, batches []batch) error {
	err := p.tryWrite(batches)
	if err == nil {
		err = p.readBack(batches)
	}
	if err != nil {
		return p.rewriteAll(ctx, batches, err)
	}
	return nil
}

// rewriteAll writes all of the batches that failed. When the state of the disk is unknown nothing less is safe: fsync
// reports an error once and forgets the pages.
func (p *copyPair) rewriteAll(ctx context.Context, batches []batch, failed error) error {
	klog.FromContext(ctx).Error(failed, "Writing the partition table failed, writing all of it once more", "disk", p.current().id)
	again := slices.Clone(batches)
	for i := range again {
		again[i] = wholeBatch(again[i].all)
	}
	err := p.tryWrite(again)
	if err == nil {
		err = p.readBack(again)
	}
	if err != nil {
		return fmt.Errorf("%w: the partition table could not be written: %w; at first: %w", ErrOutOfService, err, failed)
	}
	return nil
}

// tryWrite writes the batches, with a flush after each. Within a batch sectors may reach the medium in any order: the
// header's checksums show when some did not.
func (p *copyPair) tryWrite(batches []batch) error {
	for _, b := range batches {
		if len(b.changed) == 0 {
			continue // prepared before, with a flush of its own
		}
		for _, w := range b.changed {
			if _, err := p.dev.WriteAt(w.data, w.off); err != nil {
				return fmt.Errorf("writing %d bytes at %d: %w", len(w.data), w.off, err)
			}
		}
		if err := p.dev.Sync(); err != nil {
			return fmt.Errorf("syncing: %w", err)
		}
	}
	return nil
}

// readBack reads the batches back, and returns an error unless the medium has them.
func (p *copyPair) readBack(batches []batch) error {
	for _, b := range batches {
		if len(b.changed) == 0 {
			continue // read back when it was written
		}
		if err := p.verify(b.all); err != nil {
			return err
		}
	}
	return nil
}

// verify checks that the medium has what it should. It reads all of it, not only what was written last, so that a
// misplaced sector is noticed, too.
func (p *copyPair) verify(w sectorWrite) error {
	if len(p.scratch) < len(w.data) {
		p.scratch = make([]byte, len(w.data))
	}
	got := p.scratch[:len(w.data)]
	if _, err := p.dev.ReadAt(got, w.off); err != nil {
		return fmt.Errorf("reading back %d bytes at %d: %w", len(got), w.off, err)
	}
	if !bytes.Equal(got, w.data) {
		return fmt.Errorf("%d bytes at %d do not read back as written", len(got), w.off)
	}
	return nil
}
