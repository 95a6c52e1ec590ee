package disk

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"slices"

	"k8s.io/klog/v2"
)

// pair is the two copies of a disk's table on the medium. It knows bytes, and neither entries nor phases. Pods wait for
// two of its writes, so the copies can be written at different times. The state says which copy holds what:
//
//	state   primary                      backup                       left to do
//	same    the table                    the table                    nothing
//	early   the table, not read back     the table before             write the backup, read both back
//	ahead   the table                    the table that is expected   nothing
//
// Each operation leads to the following. "settled" means that the pair settles first, and is same:
//
//	state   put      putEarly          expect   settle   takeBack
//	same    same     early             ahead    same     same
//	early   settled  settled, early    ahead    same     settled
//	ahead   same     same, like put    ahead    ahead    same
//
// Invariants, asserted by TestPair:
//  1. At every moment one copy is intact on the medium.
//  2. The primary counts. If it is lost, the backup counts. It holds the table. While Create's early write is in
//     progress it holds the table before, and while a mkfs has not failed the table that is expected.
//  3. In state same both were flushed and read back.
//  4. After an error that wraps ErrOutOfService it is unknown what the medium holds, and nothing more is written. After
//     any other error nothing was written.
type pair struct {
	dev   device
	l     layout
	state pairState
	// onDisk is what the copies hold. In state early it has what the backup will hold.
	onDisk copies
	// unread was written and flushed, or is in missing, and was not read back. settle writes missing.
	unread, missing []batch
	// Room for the next copies and for what is read back, so that a change allocates nothing of that size.
	spare   copies
	scratch []byte
}

type pairState string

const (
	pairSame  pairState = "same"
	pairEarly pairState = "early"
	pairAhead pairState = "ahead"
)

// newPair is the copies of a table that the medium has, or will get, in state same.
func newPair(dev device, l layout, c copyOfTable) pair {
	p := pair{dev: dev, l: l, state: pairSame, onDisk: render(l, c)}
	p.spare.primary = write{p.onDisk.primary.off, make([]byte, l.copyBytes())}
	p.spare.backup = write{p.onDisk.backup.off, make([]byte, l.copyBytes())}
	return p
}

// current is the table's bytes. They are the pair's: the next change may overwrite them.
func (p *pair) current() copyOfTable {
	header, array := p.l.split(p.l.primary(), p.onDisk.primary.data)
	return copyOfTable{id: guidFromDisk(header[56:72]).String(), array: array}
}

// put changes one entry in both copies. first, if set, is called after the medium was checked, before anything else is
// written.
func (p *pair) put(ctx context.Context, index int, slot []byte, first func() error) error {
	if err := p.ready(ctx); err != nil {
		return err
	}
	if first != nil {
		if err := first(); err != nil {
			return err
		}
	}
	to := p.renderWith(index, slot)
	// Until the backup is complete the primary is the old one. From then on the backup is the new one.
	if err := p.write(ctx, []batch{p.l.change(p.onDisk.backup, to.backup), p.l.change(p.onDisk.primary, to.primary)}); err != nil {
		return err
	}
	p.state, p.onDisk, p.spare = pairSame, to, p.onDisk
	return nil
}

// putEarly is put, but returns when the primary is on the medium. settle does the rest.
func (p *pair) putEarly(ctx context.Context, index int, slot []byte, first func() error) error {
	if p.state == pairAhead {
		// If the primary were lost meanwhile, the change that the backup expects would take effect.
		return p.put(ctx, index, slot, first)
	}
	if err := p.ready(ctx); err != nil {
		return err
	}
	if first != nil {
		if err := first(); err != nil {
			return err
		}
	}
	to := p.renderWith(index, slot)
	batches := []batch{p.l.change(p.onDisk.primary, to.primary), p.l.change(p.onDisk.backup, to.backup)}
	if err := p.attempt(batches[:1]); err != nil {
		if err := p.writeAgain(ctx, batches, err); err != nil {
			return err
		}
		p.state, p.onDisk, p.spare = pairSame, to, p.onDisk
		return nil
	}
	p.unread, p.missing = batches, batches[1:]
	p.state, p.onDisk, p.spare = pairEarly, to, p.onDisk
	return nil
}

// expect writes a change that is likely to come into the backup. The table does not change, because the primary counts.
// A put of the same change then only writes the primary. Any other change writes the backup again.
func (p *pair) expect(ctx context.Context, index int, slot []byte) error {
	if p.state == pairEarly && p.unchanged(p.primaryHeader()) == nil {
		return p.expectInstead(ctx, index, slot)
	}
	if err := p.ready(ctx); err != nil {
		return err
	}
	return p.writeBackup(ctx, p.renderWith(index, slot).backup, pairAhead)
}

// expectInstead is expect in state early. The backup changes from the table before to the one that is expected, and
// never holds the present table.
func (p *pair) expectInstead(ctx context.Context, index int, slot []byte) error {
	primary, meant := p.unread[0], p.missing[0]
	to := p.renderWith(index, slot).backup
	backup := p.l.change(p.onDisk.backup, to)
	// The medium does not have the pending change yet.
	for _, w := range meant.changed {
		if !slices.ContainsFunc(backup.changed, func(c write) bool { return c.off <= w.off && w.end() <= c.end() }) {
			backup.changed = append(backup.changed, write{w.off, to.data[w.off-to.off:][:len(w.data)]})
		}
	}
	p.unread, p.missing = []batch{primary, backup}, []batch{backup}
	if err := p.settle(ctx); err != nil {
		return err
	}
	p.state, p.onDisk.backup, p.spare.backup = pairAhead, p.spare.backup, p.onDisk.backup
	return nil
}

// takeBack undoes what expect wrote.
func (p *pair) takeBack(ctx context.Context) error {
	if p.state != pairAhead {
		return nil
	}
	if err := p.ready(ctx); err != nil {
		return err
	}
	return p.writeBackup(ctx, p.renderWith(MetaEntry, bytes.Clone(p.current().slot(MetaEntry))).backup, pairSame)
}

// settle finishes what putEarly began.
func (p *pair) settle(ctx context.Context) error {
	if p.state != pairEarly {
		return nil
	}
	err := p.attempt(p.missing)
	if err == nil {
		err = p.readBack(p.unread)
	}
	if err != nil {
		if err := p.writeAgain(ctx, p.unread, err); err != nil {
			return err
		}
	}
	p.state, p.unread, p.missing = pairSame, nil, nil
	return nil
}

func (p *pair) writeBackup(ctx context.Context, to write, becomes pairState) error {
	if err := p.write(ctx, []batch{p.l.change(p.onDisk.backup, to)}); err != nil {
		return err
	}
	p.state, p.onDisk.backup, p.spare.backup = becomes, p.spare.backup, p.onDisk.backup
	return nil
}

// ready settles, and checks that the table on the medium is unchanged. A tool may have added a partition: the next
// write would remove it, and give its extent to the next volume. The header is enough, because it has the checksum of
// the entries. Entries that changed without the header are damaged, and found when everything is read back.
func (p *pair) ready(ctx context.Context) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	return p.unchanged(p.primaryHeader())
}

func (p *pair) primaryHeader() write {
	header, _ := p.l.split(p.l.primary(), p.onDisk.primary.data)
	return write{p.l.offset(p.l.primary().headerLBA), header}
}

// unchanged checks that parts of the table on the medium are what the pair has.
func (p *pair) unchanged(parts ...write) error {
	for _, part := range parts {
		if err := p.verify(part); err != nil {
			return fmt.Errorf("%w: the partition table is not what it was: %w; open the disk again to take it as it is now", ErrOutOfService, err)
		}
	}
	return nil
}

// renderWith renders the present copies with one entry's bytes replaced, into the spare.
func (p *pair) renderWith(index int, slot []byte) copies {
	now := p.current()
	for _, to := range []struct {
		location
		write
	}{{p.l.primary(), p.spare.primary}, {p.l.backup(), p.spare.backup}} {
		header, array := p.l.split(to.location, to.data)
		copy(array, now.array)
		copy(array[(index-1)*entrySize:index*entrySize], slot)
		encodeHeader(header, p.l, to.location, now.id, crc32.ChecksumIEEE(array))
	}
	return p.spare
}

// write brings the batches to the medium, first only what they change, and reads everything back. After an error that
// wraps ErrOutOfService the state of the disk is unknown.
func (p *pair) write(ctx context.Context, batches []batch) error {
	err := p.attempt(batches)
	if err == nil {
		err = p.readBack(batches)
	}
	if err != nil {
		return p.writeAgain(ctx, batches, err)
	}
	return nil
}

// writeAgain writes all of the batches that failed. When the state of the disk is unknown nothing less is safe: fsync
// reports an error once and forgets the pages.
func (p *pair) writeAgain(ctx context.Context, batches []batch, failed error) error {
	klog.FromContext(ctx).Error(failed, "Writing the partition table failed, writing all of it once more", "disk", p.current().id)
	again := slices.Clone(batches)
	for i := range again {
		again[i] = whole(again[i].all)
	}
	err := p.attempt(again)
	if err == nil {
		err = p.readBack(again)
	}
	if err != nil {
		return fmt.Errorf("%w: the partition table could not be written: %w; at first: %w", ErrOutOfService, err, failed)
	}
	return nil
}

// attempt writes with a barrier behind each batch. Within a batch sectors may reach the medium in any order: the
// header's checksums show when some did not.
func (p *pair) attempt(batches []batch) error {
	for _, b := range batches {
		if len(b.changed) == 0 {
			continue // written ahead, behind a barrier of its own
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

func (p *pair) readBack(batches []batch) error {
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
func (p *pair) verify(w write) error {
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
