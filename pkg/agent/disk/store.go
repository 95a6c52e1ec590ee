package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/google/uuid"
	"k8s.io/klog/v2"
)

// device is what the table lies on. Reads must come from the medium, not from a
// cache: a write that the device dropped has to show.
type device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// findings is what the two copies of the table say together.
type findings struct {
	// ours: the disk has a table of ours. If not, reason says what it has instead,
	// and foreign whether that is an intact table of somebody else's; akin, whether it is
	// one of ours that cannot be used.
	ours, foreign, akin bool
	reason              string
	// current is the copy that counts.
	current copyOfTable
	// was is the layout that the table was made for, if the disk had another size then:
	// nothing else below is of any meaning.
	was layout
	// Which parts must be rewritten before anything else is.
	badMBR, badPrimary, badBackup bool
	// needsKnown: only the backup is left, and nothing at the beginning of the disk
	// says that it still is the same disk. Whoever zeroes the beginning of a disk
	// means to have done with it, so the id must be known from elsewhere.
	needsKnown bool
}

func (f findings) String() string {
	return fmt.Sprintf("disk %s: ours %t, foreign %t (%s), bad: record %t, primary %t, backup %t, needs to be known %t",
		f.current.id, f.ours, f.foreign, f.reason, f.badMBR, f.badPrimary, f.badBackup, f.needsKnown)
}

// examine reads both copies and decides. It only reads; errors come from the device.
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
		// A crash between the copies leaves two intact ones that differ. The primary
		// wins: the change that only the backup has was never acknowledged.
		f.badBackup = backupErr != nil || !backup.clean || backup.id != primary.id || !bytes.Equal(backup.array, primary.array)
	case errors.Is(primaryErr, errNotOurs):
		c, was, found, err := resized(r, l)
		if err != nil {
			return findings{}, err
		}
		if !found || !c.isOurs() {
			f.foreign, f.reason = true, primaryErr.Error()
			return f, nil
		}
		f.current, f.was = c, was
	case backupErr == nil:
		f.current, f.badPrimary, f.badBackup = backup, true, !backup.clean
		// A crash while the primary's entries are written leaves its header intact, and
		// with it the proof that this is still the disk of the backup.
		f.needsKnown = primary.id != backup.id || mbr != mbrProtective
	default:
		f.reason = primaryErr.Error()
		if id := cmp.Or(primary.id, backup.id); id != "" {
			// A header is left, so that a person can be told what this was.
			f.akin = true
			f.reason = fmt.Sprintf("both copies of the partition table of the disk %s are damaged: %v; %v; restore one of them, or zero the first and the last MiB to give its volumes up", id, primaryErr, backupErr)
			return f, nil
		}
		sector, err := otherSector(r, l)
		if sector != 0 {
			f.foreign, f.akin = true, true
			f.reason = fmt.Sprintf("the disk has a table of ours for sectors of %d bytes, and shows sectors of %d: connect it as it was before", sector, l.sector)
		}
		return f, err
	}
	if !f.current.isOurs() {
		f.foreign, f.reason = true, fmt.Sprintf("the partition table has no meta partition of ours in entry %d", MetaEntry)
		return f, nil
	}
	if mbr == mbrOther {
		f.foreign, f.akin, f.reason = true, true, "the disk has a table of ours, but sector 0 holds somebody else's partition table or boot sector"
		return f, nil
	}
	f.ours = true
	return f, nil
}

// isOurs reports whether the entries have a meta partition of ours.
func (c copyOfTable) isOurs() bool { return bytes.Equal(c.slot(MetaEntry)[:16], metaTypeOnDisk[:]) }

var metaTypeOnDisk = guidToDisk(uuid.MustParse(TypeMeta))

// store keeps a disk's table: the entries, and both copies as they are on the disk.
type store struct {
	dev    device
	table  table
	onDisk copies
	// unproven was written and flushed, or is unwritten still, and was not read back;
	// proven is the table before.
	unproven, unwritten []batch
	proven              table
	// Room for the next copies and for what is read back: a change makes no garbage of
	// that size.
	spare   copies
	scratch []byte
}

// load takes the table that examine chose, with the layout that it was made for. It does not
// write.
func load(dev device, l layout, f findings) (*store, error) {
	t, err := decode(f.layoutOf(l), f.current)
	if err != nil {
		return nil, fmt.Errorf("the partition table is invalid: %w", err)
	}
	return newStore(dev, t, f.current), nil
}

func newStore(dev device, t table, c copyOfTable) *store {
	s := &store{dev: dev, table: t, proven: t, onDisk: render(t.layout, c)}
	s.spare.primary = write{s.onDisk.primary.off, make([]byte, t.copyBytes())}
	s.spare.backup = write{s.onDisk.backup.off, make([]byte, t.copyBytes())}
	return s
}

// current is the table's bytes. They are the store's: the next change may overwrite them.
func (s *store) current() copyOfTable {
	_, array := s.table.split(s.table.primary(), s.onDisk.primary.data)
	return copyOfTable{id: s.table.id, array: array}
}

// repair rewrites the damaged parts, unchanged: a change on top of a single intact
// copy could lose both to the next crash.
func (s *store) repair(ctx context.Context, f findings) error {
	var batches []batch
	if f.badMBR {
		batches = append(batches, whole(write{0, encodeMBR(s.table.layout)}))
	}
	if f.badBackup {
		batches = append(batches, whole(s.onDisk.backup))
	}
	if f.badPrimary {
		batches = append(batches, whole(s.onDisk.primary))
	}
	if len(batches) == 0 {
		return nil
	}
	klog.FromContext(ctx).Info("Repairing partition table", "disk", s.table.id,
		"masterBootRecord", f.badMBR, "primary", f.badPrimary, "backup", f.badBackup)
	return s.write(ctx, batches)
}

// probe finds out whether the disk takes writes at all: disks at the end of their life only
// read. It writes the backup's header as it is.
func (s *store) probe(ctx context.Context) error {
	header := s.onDisk.backup
	header.off, header.data = header.end()-s.table.sector, header.data[int64(len(header.data))-s.table.sector:]
	return s.write(ctx, []batch{{s.onDisk.backup, []write{header}}})
}

// put makes next the table of the disk: the present one with e in its place. After
// an error that wraps ErrOutOfService nobody knows what is on the disk; after any
// other error nothing was written.
func (s *store) put(ctx context.Context, next table, e entry) error {
	b, err := encodeEntry(next.layout, e)
	if err != nil {
		return err
	}
	return s.commit(ctx, next, e.index, b)
}

// putEarly is put that returns when the entry is in the primary and on the medium. The
// other half is left to finish: to write the backup, and to read back. Until then the
// backup is intact as it was before, so that one copy always is.
func (s *store) putEarly(ctx context.Context, next table, e entry) error {
	if !s.agree() {
		// The backup is ahead. Should the primary be lost, what it says would come true.
		return s.put(ctx, next, e)
	}
	b, err := encodeEntry(next.layout, e)
	if err != nil {
		return err
	}
	if err := s.prepare(ctx, next); err != nil {
		return err
	}
	rendered := s.renderWith(e.index, b)
	if err := s.begin(ctx, []batch{
		s.table.change(s.onDisk.primary, rendered.primary),
		s.table.change(s.onDisk.backup, rendered.backup),
	}, 1); err != nil {
		return err
	}
	s.table, s.onDisk, s.spare = next, rendered, s.onDisk
	return nil
}

// drop makes next the table of the disk: the present one without the entry of that
// index. Errors are those of put.
func (s *store) drop(ctx context.Context, next table, index int) error {
	return s.commit(ctx, next, index, make([]byte, entrySize))
}

// commit makes next the table of the disk, whose bytes are the present ones but for one
// entry.
func (s *store) commit(ctx context.Context, next table, index int, slot []byte) error {
	if err := s.prepare(ctx, next); err != nil {
		return err
	}
	rendered := s.renderWith(index, slot)
	// Until the backup is complete the primary is the old one; from then on the backup
	// is the new one.
	if err := s.write(ctx, []batch{
		s.table.change(s.onDisk.backup, rendered.backup),
		s.table.change(s.onDisk.primary, rendered.primary),
	}); err != nil {
		return err
	}
	s.table, s.onDisk, s.spare = next, rendered, s.onDisk
	s.proven = next
	return nil
}

// putAhead writes the first half of a put that is likely to come: the backup. The
// table remains what it is, since the primary counts; a put of the same then only has to
// write that, and any other change first writes the backup as it needs it.
func (s *store) putAhead(ctx context.Context, next table, e entry) error {
	b, err := encodeEntry(next.layout, e)
	if err != nil {
		return err
	}
	// If the table is not what it should be, it may be the early write that is missing.
	if len(s.unwritten) > 0 && s.mayWrite(next) == nil {
		return s.divert(ctx, e.index, b)
	}
	if err := s.prepare(ctx, next); err != nil {
		return err
	}
	return s.writeBackup(ctx, s.renderWith(e.index, b).backup)
}

// divert finishes what putEarly began with another backup than it meant to write, and
// saves writing that.
func (s *store) divert(ctx context.Context, index int, slot []byte) error {
	primary, meant := s.unproven[0], s.unwritten[0]
	to := s.renderWith(index, slot).backup
	backup := s.table.change(s.onDisk.backup, to)
	// The disk does not have yet what was meant.
	for _, w := range meant.changed {
		if !slices.ContainsFunc(backup.changed, func(c write) bool { return c.off <= w.off && w.end() <= c.end() }) {
			backup.changed = append(backup.changed, write{w.off, to.data[w.off-to.off:][:len(w.data)]})
		}
	}
	s.unproven, s.unwritten = []batch{primary, backup}, []batch{backup}
	if err := s.finish(ctx); err != nil {
		return err
	}
	s.onDisk.backup, s.spare.backup = s.spare.backup, s.onDisk.backup
	return nil
}

// takeBack ends what putAhead began: both copies are the same again.
func (s *store) takeBack(ctx context.Context) error {
	if s.agree() {
		return nil
	}
	if err := s.prepare(ctx, s.table); err != nil {
		return err
	}
	return s.writeBackup(ctx, s.renderWith(MetaEntry, bytes.Clone(s.current().slot(MetaEntry))).backup)
}

// agree reports whether both copies have the same entries.
func (s *store) agree() bool {
	_, array := s.table.split(s.table.backup(), s.onDisk.backup.data)
	return bytes.Equal(array, s.current().array)
}

func (s *store) writeBackup(ctx context.Context, to write) error {
	if err := s.write(ctx, []batch{s.table.change(s.onDisk.backup, to)}); err != nil {
		return err
	}
	s.onDisk.backup, s.spare.backup = s.spare.backup, s.onDisk.backup
	return nil
}

// prepare holds what must be true before anything is written.
func (s *store) prepare(ctx context.Context, next table) error {
	if err := s.finish(ctx); err != nil {
		return err
	}
	return s.mayWrite(next)
}

func (s *store) mayWrite(next table) error {
	if err := next.validate(); err != nil {
		return fmt.Errorf("the new table would be invalid: %w", err)
	}
	// Nothing keeps a person from adding a partition with a tool. What is written now
	// would take it away again, and give its extent to the next volume. The header tells,
	// as it has the checksum of the entries; entries that changed without it are damaged,
	// and found when all of it is read back.
	l := s.table.layout
	header, _ := l.split(l.primary(), s.onDisk.primary.data)
	return s.unchanged(write{l.offset(l.primary().headerLBA), header})
}

// renderWith renders the present copies with one entry's bytes replaced, into the spare.
func (s *store) renderWith(index int, slot []byte) copies {
	l, now := s.table.layout, s.current()
	for _, to := range []struct {
		site
		write
	}{{l.primary(), s.spare.primary}, {l.backup(), s.spare.backup}} {
		header, array := l.split(to.site, to.data)
		copy(array, now.array)
		copy(array[(index-1)*entrySize:index*entrySize], slot)
		encodeHeader(header, l, to.site, now.id, crc32.ChecksumIEEE(array))
	}
	return s.spare
}

// unchanged holds that parts of the table are on the disk as this store knows them.
func (s *store) unchanged(parts ...write) error {
	for _, part := range parts {
		if err := s.verify(part); err != nil {
			return fmt.Errorf("%w: the partition table is not what it was: %w; open the disk again to take it as it is now", ErrOutOfService, err)
		}
	}
	return nil
}

// format writes the first table onto a blank disk. First come the entries, of which
// only the meta partition's is not zero: the disk still counts as blank (see isBlank).
// The one sector of the primary header then makes the disk ours; what is missing from
// there on, repair adds. So a crash leaves nothing in between.
func format(ctx context.Context, dev device, l layout) (id string, err error) {
	t, c, err := newCopy(l, uuid.NewString(), uuid.NewString())
	if err != nil {
		return "", err
	}
	s := newStore(dev, t, c)
	header, array := l.split(l.primary(), s.onDisk.primary.data)
	err = s.write(ctx, []batch{
		whole(write{l.offset(l.primary().arrayLBA), array}),
		whole(write{l.offset(l.primary().headerLBA), header}),
		whole(write{0, encodeMBR(l)}),
		whole(s.onDisk.backup),
	})
	return t.id, err
}

// newCopy is the table of a disk without volumes, with its bytes.
func newCopy(l layout, id, metaGUID string) (table, copyOfTable, error) {
	t := newTable(l, id, metaGUID)
	if err := t.validate(); err != nil {
		return table{}, copyOfTable{}, err
	}
	c, err := copyOfTable{id: id, array: make([]byte, arrayBytes)}.withEntry(l, t.entries[0])
	return t, c, err
}

// isBlank reports whether the first and the last MiB are zero. The one exception is
// the entry of our meta partition in a table without header: a format cut short.
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
	want := c.slot(MetaEntry)
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
