package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"k8s.io/klog/v2"
)

// device is what the table is stored on. Reads must come from the medium, not from a cache: a write that the device
// dropped must be noticed.
type device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// findings is the result of reading the two copies of the table.
type findings struct {
	// ours: the disk has a table of ours. If not, reason says what it has instead. foreign is set if that is an intact
	// table of another program, and unusable if it is a table of ours that cannot be used.
	ours, foreign, unusable bool
	reason                  string
	// current is the copy that counts.
	current tableCopy
	// madeFor is the layout for which the table was made, if the disk had another size then. In that case the fields
	// below have no meaning.
	madeFor layout
	// The parts that must be rewritten before anything else is.
	badMBR, badPrimary, badBackup bool
	// mustBeSeenBefore: only the backup is left, and nothing at the beginning of the disk shows that it is still the
	// same disk. An operator who gives a disk up zeroes its beginning, so the id must be known from elsewhere.
	mustBeSeenBefore bool
}

func (f findings) String() string {
	return fmt.Sprintf("disk %s: ours %t, foreign %t (%s), bad: record %t, primary %t, backup %t, needs to be known %t",
		f.current.id, f.ours, f.foreign, f.reason, f.badMBR, f.badPrimary, f.badBackup, f.mustBeSeenBefore)
}

// examine reads both copies and decides which one counts. It only reads. Errors come from the device.
//
//nolint:gocyclo // One decision over all states of the two copies, which a crash test enumerates.
func examine(r io.ReaderAt, l layout) (findings, error) {
	sector0 := make([]byte, l.sector)
	if _, err := r.ReadAt(sector0, 0); err != nil {
		return findings{}, fmt.Errorf("reading sector 0: %w", err)
	}
	mbr := checkMBR(sector0)
	primary, primaryErr := readCopy(r, l, l.primary())
	backup, backupErr := readCopy(r, l, l.backup())
	for _, err := range []error{primaryErr, backupErr} {
		if err != nil && !errors.Is(err, errDamaged) && !errors.Is(err, errNotOurs) {
			return findings{}, err
		}
	}
	f := findings{badMBR: mbr == mbrMissing}
	switch {
	case primaryErr == nil:
		f.current, f.badPrimary = primary, !primary.clean
		// A crash between the copies leaves two intact ones that differ. The primary wins: the change that only the
		// backup has was never acknowledged.
		f.badBackup = backupErr != nil || !backup.clean || backup.id != primary.id || !bytes.Equal(backup.array, primary.array)
	case errors.Is(primaryErr, errNotOurs):
		c, was, found, err := findResized(r, l)
		if err != nil {
			return findings{}, err
		}
		if !found || !c.isOurs() {
			f.foreign, f.reason = true, primaryErr.Error()
			return f, nil
		}
		f.current, f.madeFor = c, was
	case backupErr == nil:
		f.current, f.badPrimary, f.badBackup = backup, true, !backup.clean
		// A crash while the primary's entries are written leaves its header intact. The header proves that this is
		// still the disk of the backup.
		f.mustBeSeenBefore = primary.id != backup.id || mbr != mbrProtective
	default:
		f.reason = primaryErr.Error()
		if id := cmp.Or(primary.id, backup.id); id != "" {
			// A header is left, so the reason can name the disk.
			f.unusable = true
			f.reason = fmt.Sprintf("both copies of the partition table of the disk %s are damaged: %v; %v; restore one of them, or zero the first and the last MiB to give its volumes up", id, primaryErr, backupErr)
			return f, nil
		}
		sector, err := findOtherSectorSize(r, l)
		if sector != 0 {
			f.foreign, f.unusable = true, true
			f.reason = fmt.Sprintf("the disk has a table of ours for sectors of %d bytes, and shows sectors of %d: connect it as it was before", sector, l.sector)
		}
		return f, err
	}
	if !f.current.isOurs() {
		f.foreign, f.reason = true, fmt.Sprintf("the partition table has no meta partition of ours in entry %d", MetaEntry)
		return f, nil
	}
	if mbr == mbrForeign {
		f.foreign, f.unusable, f.reason = true, true, "the disk has a table of ours, but sector 0 holds another partition table or boot sector"
		return f, nil
	}
	f.ours = true
	return f, nil
}

// isOurs reports whether the entries have a meta partition of ours.
func (c tableCopy) isOurs() bool { return bytes.Equal(c.entryBytes(MetaEntry)[:16], metaTypeOnDisk[:]) }

var metaTypeOnDisk = encodeGUID(uuid.MustParse(TypeMeta))

// store keeps a disk's table: the entries, and both copies of them on the disk.
type store struct {
	copyPair
	table table
	// verified is the table that both copies are known to hold, or held last. In state backup pending it is the one
	// before.
	verified table
}

// load reads the table that examine chose, with the layout for which it was made. It does not write.
func load(dev device, l layout, f findings) (*store, error) {
	t, err := decode(f.layoutOf(l), f.current)
	if err != nil {
		return nil, fmt.Errorf("the partition table is invalid: %w", err)
	}
	return newStore(dev, t, f.current), nil
}

func newStore(dev device, t table, c tableCopy) *store {
	return &store{copyPair: newCopyPair(dev, t.layout, c), table: t, verified: t}
}

// repair rewrites the damaged parts, unchanged. With a change on top of a single intact copy the next crash could lose
// both copies.
func (s *store) repair(ctx context.Context, f findings) error {
	var batches []batch
	if f.badMBR {
		batches = append(batches, wholeBatch(sectorWrite{0, encodeMBR(s.table.layout)}))
	}
	if f.badBackup {
		batches = append(batches, wholeBatch(s.onDisk.backup))
	}
	if f.badPrimary {
		batches = append(batches, wholeBatch(s.onDisk.primary))
	}
	if len(batches) == 0 {
		return nil
	}
	klog.FromContext(ctx).Info("Repairing partition table", "disk", s.table.id,
		"masterBootRecord", f.badMBR, "primary", f.badPrimary, "backup", f.badBackup)
	return s.write(ctx, batches)
}

// probe finds out whether the disk takes writes at all: disks at the end of their life can only be read. It rewrites
// the backup's header unchanged.
func (s *store) probe(ctx context.Context) error {
	header := s.onDisk.backup
	header.off, header.data = header.end()-s.table.sector, header.data[int64(len(header.data))-s.table.sector:]
	return s.write(ctx, []batch{{s.onDisk.backup, []sectorWrite{header}}})
}

// put makes next the table of the disk: the present one with the changed entries in their places, in one write. After
// an error that wraps ErrOutOfService the content of the disk is not known. After any other error nothing was written.
func (s *store) put(ctx context.Context, next table, changed ...entry) error {
	return s.putSet(ctx, next, changed, false, nil)
}

// putMoved is put of the entries that the switch of a move changes. Those of the volume's pieces are among them.
// onChecked is that of putNew.
func (s *store) putMoved(ctx context.Context, next table, volume, old entry, onChecked func() error) error {
	changed := []entry{volume, old}
	for _, p := range next.setOf(old).pieces {
		changed = append(changed, p.entry)
	}
	return s.putSet(ctx, next, changed, false, onChecked)
}

// putNew is put of a new volume. onChecked is called after the medium was checked, before anything is written. With
// primaryFirst, putNew returns when the entry is in the primary and on the medium. finish completes the backup.
func (s *store) putNew(ctx context.Context, next table, e entry, primaryFirst bool, onChecked func() error) error {
	return s.putSet(ctx, next, []entry{e}, primaryFirst, onChecked)
}

// putSet is putNew of several entries, in one write of the table.
func (s *store) putSet(ctx context.Context, next table, changed []entry, primaryFirst bool, onChecked func() error) error {
	changes, err := changesTo(next.layout, changed)
	if err != nil {
		return err
	}
	return s.change(ctx, next, func() error {
		if primaryFirst {
			return s.copyPair.putPrimaryFirst(ctx, changes, onChecked)
		}
		return s.copyPair.put(ctx, changes, onChecked)
	})
}

// changesTo are the changes that put the entries in their places.
func changesTo(l layout, changed []entry) ([]entryChange, error) {
	var changes []entryChange
	for _, e := range changed {
		b, err := encodeEntry(l, e)
		if err != nil {
			return nil, err
		}
		changes = append(changes, entryChange{e.index, b})
	}
	return changes, nil
}

// drop makes next the table of the disk: the present one without the entry at that index, and with the changed ones.
// Errors are those of put.
func (s *store) drop(ctx context.Context, next table, index int, changed ...entry) error {
	changes, err := changesTo(next.layout, changed)
	if err != nil {
		return err
	}
	changes = append(changes, entryChange{index, make([]byte, entrySize)})
	return s.change(ctx, next, func() error { return s.copyPair.put(ctx, changes, nil) })
}

// prepare writes the first half of a put that is likely to come. The table does not change.
func (s *store) prepare(ctx context.Context, next table, e entry) error {
	changes, err := changesTo(next.layout, []entry{e})
	if err != nil {
		return err
	}
	if err := checkNext(next); err != nil {
		return err
	}
	return s.recordResult(s.table, s.copyPair.prepare(ctx, changes[0]))
}

// undoPrepare undoes what prepare wrote: both copies are the same again.
func (s *store) undoPrepare(ctx context.Context) error {
	return s.recordResult(s.table, s.copyPair.undoPrepare(ctx))
}

// finish completes the backup after a putNew that wrote the primary first.
func (s *store) finish(ctx context.Context) error {
	return s.recordResult(s.table, s.copyPair.completeBackup(ctx))
}

// unfinished reports whether finish has anything to do.
func (s *store) unfinished() bool { return s.state == pairBackupPending }

func checkNext(next table) error {
	if err := next.validate(); err != nil {
		return fmt.Errorf("the new table would be invalid: %w", err)
	}
	return nil
}

// change has the pair make next the table. An earlier write is finished, and recorded, first.
func (s *store) change(ctx context.Context, next table, do func() error) error {
	if err := checkNext(next); err != nil {
		return err
	}
	if err := s.finish(ctx); err != nil {
		return err
	}
	return s.recordResult(next, do())
}

// recordResult records the table after an operation of the pair. If the backup could not be completed, it is the
// table before: that volume was not acknowledged yet.
func (s *store) recordResult(next table, err error) error {
	switch {
	case errors.Is(err, ErrOutOfService) && s.state == pairBackupPending:
		s.table = s.verified
	case err != nil:
	case s.state == pairBackupPending:
		s.table = next
	default:
		s.table, s.verified = next, next
	}
	return err
}

// format writes the first table onto a blank disk. First come the entries, of which only the meta partition's is not
// zero: the disk still counts as blank (see isBlank). The one sector of the primary header then makes the disk ours,
// and repair adds what is missing from there on. So a crash leaves no state in between. The owner, if there is one, is
// on the medium before all of it: isBlank does not look at the meta partition.
func format(ctx context.Context, dev device, l layout, o Owner) (id string, err error) {
	t, c, err := newCopy(l, uuid.NewString(), uuid.NewString())
	if err != nil {
		return "", err
	}
	s := newStore(dev, t, c)
	if o != (Owner{}) {
		if err := s.writeOwner(o); err != nil {
			return "", err
		}
	}
	header, array := l.split(l.primary(), s.onDisk.primary.data)
	err = s.write(ctx, []batch{
		wholeBatch(sectorWrite{l.offset(l.primary().arrayLBA), array}),
		wholeBatch(sectorWrite{l.offset(l.primary().headerLBA), header}),
		wholeBatch(sectorWrite{0, encodeMBR(l)}),
		wholeBatch(s.onDisk.backup),
	})
	return t.id, err
}

// newCopy is the table of a disk without volumes, with its bytes.
func newCopy(l layout, id, metaGUID string) (table, tableCopy, error) {
	t := newTable(l, id, metaGUID)
	if err := t.validate(); err != nil {
		return table{}, tableCopy{}, err
	}
	c, err := tableCopy{id: id, array: make([]byte, arrayBytes)}.withEntry(l, t.entries[0])
	return t, c, err
}

// isBlank reports whether the first and the last MiB are zero. The one exception is the entry of our meta partition in
// a table without header: a format was cut short.
func isBlank(r io.ReaderAt, l layout) (bool, error) {
	head := make([]byte, Alignment)
	if _, err := r.ReadAt(head, 0); err != nil {
		return false, fmt.Errorf("reading the first MiB: %w", err)
	}
	_, c, err := newCopy(l, uuid.NewString(), uuid.NewString())
	if err != nil {
		return false, err
	}
	// All but its GUID, which is random.
	want := c.entryBytes(MetaEntry)
	slot := head[l.offset(l.primary().arrayLBA)+(MetaEntry-1)*entrySize:][:entrySize]
	if bytes.Equal(slot[:16], want[:16]) && bytes.Equal(slot[32:], want[32:]) {
		clear(slot)
	}
	tail := make([]byte, Alignment)
	if _, err := r.ReadAt(tail, l.size-Alignment); err != nil {
		return false, fmt.Errorf("reading the last MiB: %w", err)
	}
	return allZero(head) && allZero(tail), nil
}
