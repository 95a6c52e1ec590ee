package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	// and foreign whether that is an intact table of somebody else's.
	ours, foreign bool
	reason        string
	// current is the copy that counts.
	current copyOfTable
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
		f.foreign, f.reason = true, primaryErr.Error()
		return f, nil
	case backupErr == nil:
		f.current, f.badPrimary, f.badBackup = backup, true, !backup.clean
		// A crash while the primary's entries are written leaves its header intact, and
		// with it the proof that this is still the disk of the backup.
		f.needsKnown = primary.id != backup.id || mbr != mbrProtective
	default:
		f.reason = primaryErr.Error()
		return f, nil
	}
	if !bytes.Equal(f.current.slot(MetaEntry)[:16], metaTypeOnDisk[:]) {
		f.foreign, f.reason = true, fmt.Sprintf("the partition table has no meta partition of ours in entry %d", MetaEntry)
		return f, nil
	}
	if mbr == mbrOther {
		f.foreign, f.reason = true, "the disk has a table of ours, but sector 0 holds somebody else's partition table or boot sector"
		return f, nil
	}
	f.ours = true
	return f, nil
}

var metaTypeOnDisk = guidToDisk(uuid.MustParse(TypeMeta))

// store keeps a disk's table: the entries, their bytes, and both copies as they are on
// the disk.
type store struct {
	dev    device
	table  table
	copy   copyOfTable
	onDisk copies
}

// load takes the table that examine chose. It does not write.
func load(dev device, l layout, f findings) (*store, error) {
	t, err := decode(l, f.current)
	if err != nil {
		return nil, fmt.Errorf("the partition table is invalid: %w", err)
	}
	return &store{dev: dev, table: t, copy: f.current, onDisk: render(l, f.current)}, nil
}

// repair rewrites the damaged parts, unchanged: a change on top of a single intact
// copy could lose both to the next crash.
func (s *store) repair(ctx context.Context, f findings) error {
	var writes []write
	if f.badMBR {
		writes = append(writes, write{0, encodeMBR(s.table.layout)})
	}
	if f.badBackup {
		writes = append(writes, s.onDisk.backup)
	}
	if f.badPrimary {
		writes = append(writes, s.onDisk.primary)
	}
	if len(writes) == 0 {
		return nil
	}
	klog.FromContext(ctx).Info("Repairing partition table", "disk", s.table.id,
		"masterBootRecord", f.badMBR, "primary", f.badPrimary, "backup", f.badBackup)
	return s.write(ctx, writes)
}

// put makes next the table of the disk: the present one with e in its place. After
// an error that wraps ErrOutOfService nobody knows what is on the disk; after any
// other error nothing was written.
func (s *store) put(ctx context.Context, next table, e entry) error {
	c, err := s.copy.withEntry(next.layout, e)
	if err != nil {
		return err
	}
	return s.commit(ctx, next, c)
}

// drop makes next the table of the disk: the present one without the entry of that
// index. Errors are those of put.
func (s *store) drop(ctx context.Context, next table, index int) error {
	return s.commit(ctx, next, s.copy.without(index))
}

func (s *store) commit(ctx context.Context, next table, c copyOfTable) error {
	if err := next.validate(); err != nil {
		return fmt.Errorf("the new table would be invalid: %w", err)
	}
	// Nothing keeps a person from adding a partition with a tool. What is written now
	// would take it away again, and give its extent to the next volume.
	if err := s.unchanged(s.onDisk.primary); err != nil {
		return err
	}
	rendered := render(next.layout, c)
	// Until the backup is complete the primary is the old one; from then on the backup
	// is the new one.
	if err := s.write(ctx, []write{rendered.backup, rendered.primary}); err != nil {
		return err
	}
	s.table, s.copy, s.onDisk = next, c, rendered
	return nil
}

// unchanged holds that parts of the table are on the disk as this store knows them.
func (s *store) unchanged(parts ...write) error {
	if err := verify(s.dev, parts); err != nil {
		return fmt.Errorf("%w: the partition table is not what it was: %w; open the disk again to take it as it is now", ErrOutOfService, err)
	}
	return nil
}

// write is a run of sectors to be written.
type write struct {
	off  int64
	data []byte
}

// copies are the two copies of a table, each as it is to lie on the disk.
type copies struct {
	backup, primary write
}

func render(l layout, c copyOfTable) copies {
	return copies{
		backup:  write{l.copyAt(l.backup()), encodeCopy(l, l.backup(), c)},
		primary: write{l.copyAt(l.primary()), encodeCopy(l, l.primary(), c)},
	}
}

// write brings the writes to the medium and reads them back. After an error the
// state of the disk is unknown. The one thing that is safe then is to write the very
// same again, all of it: fsync reports an error once and forgets the pages.
func (s *store) write(ctx context.Context, writes []write) error {
	first := s.attempt(writes)
	if first == nil {
		return nil
	}
	klog.FromContext(ctx).Error(first, "Writing the partition table failed, writing the same once more", "disk", s.table.id)
	if err := s.attempt(writes); err != nil {
		return fmt.Errorf("%w: the partition table could not be written: %w; at first: %w", ErrOutOfService, err, first)
	}
	return nil
}

// attempt writes with a barrier behind each write. Within a write sectors may reach
// the medium in any order: the header's checksums tell when some did not.
func (s *store) attempt(writes []write) error {
	for _, w := range writes {
		if _, err := s.dev.WriteAt(w.data, w.off); err != nil {
			return fmt.Errorf("writing %d bytes at %d: %w", len(w.data), w.off, err)
		}
		if err := s.dev.Sync(); err != nil {
			return fmt.Errorf("syncing: %w", err)
		}
	}
	return verify(s.dev, writes)
}

// verify reads back what was written.
func verify(r io.ReaderAt, writes []write) error {
	var buf []byte
	for _, w := range writes {
		buf = slices.Grow(buf[:0], len(w.data))
		got := buf[:len(w.data)]
		if _, err := r.ReadAt(got, w.off); err != nil {
			return fmt.Errorf("reading back %d bytes at %d: %w", len(got), w.off, err)
		}
		if !bytes.Equal(got, w.data) {
			return fmt.Errorf("%d bytes at %d do not read back as written", len(got), w.off)
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
	rendered := render(l, c)
	header, array := l.split(l.primary(), rendered.primary.data)
	s := &store{dev: dev, table: t, copy: c, onDisk: rendered}
	err = s.write(ctx, []write{
		{l.offset(l.primary().arrayLBA), array},
		{l.offset(l.primary().headerLBA), header},
		{0, encodeMBR(l)},
		rendered.backup,
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
