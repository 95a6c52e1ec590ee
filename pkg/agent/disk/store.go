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
		f.current = primary
		// A crash between the copies leaves two intact ones that differ. The primary
		// wins: the change that only the backup has was never acknowledged.
		f.badBackup = backupErr != nil || backup.id != primary.id || !bytes.Equal(backup.array, primary.array)
	case errors.Is(primaryErr, errNotOurs):
		f.foreign, f.reason = true, primaryErr.Error()
		return f, nil
	case backupErr == nil:
		f.current, f.badPrimary = backup, true
		// A crash while the primary's entries are written leaves its header intact, and
		// with it the proof that this is still the disk of the backup.
		f.needsKnown = primary.id != backup.id || mbr != mbrProtective
	default:
		f.reason = primaryErr.Error()
		return f, nil
	}
	meta, _ := uuid.Parse(TypeMeta)
	want := guidToDisk(meta)
	if at := (MetaEntry - 1) * entrySize; !bytes.Equal(f.current.array[at:at+16], want[:]) {
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

// store keeps a disk's table: the entries, and their bytes as they are on the disk.
type store struct {
	dev   device
	table table
	image image
}

// load takes the table that examine chose. It does not write.
func load(dev device, l layout, f findings) (*store, error) {
	t, err := decode(l, f.current)
	if err != nil {
		return nil, fmt.Errorf("the partition table is invalid: %w", err)
	}
	img, err := encode(t)
	if err != nil {
		return nil, err
	}
	// A foreign entry that cannot be written back bit for bit, say for its strange
	// name, would be changed by the next write.
	if entries := changed(f.current.array, img.array); len(entries) > 0 {
		return nil, fmt.Errorf("the partition table cannot be kept as it is: entries %v would change when it is written", entries)
	}
	return &store{dev: dev, table: t, image: img}, nil
}

// repair rewrites the damaged parts, unchanged: a change on top of a single intact
// copy could lose both to the next crash.
func (s *store) repair(ctx context.Context, f findings) error {
	var writes []write
	if f.badMBR {
		writes = append(writes, write{off: 0, data: encodeMBR(s.table.layout)})
	}
	if f.badBackup {
		writes = append(writes, s.image.writes[:2]...)
	}
	if f.badPrimary {
		writes = append(writes, s.image.writes[2:]...)
	}
	if len(writes) == 0 {
		return nil
	}
	// The last one ends a window, whichever it is.
	writes[len(writes)-1].header = true
	klog.FromContext(ctx).Info("Repairing partition table", "disk", s.table.id,
		"masterBootRecord", f.badMBR, "primary", f.badPrimary, "backup", f.badBackup)
	return s.write(ctx, writes)
}

// commit makes next the table of the disk, which differs in the entry of that index
// and no other. After an error that wraps ErrOutOfService nobody knows what is on
// the disk; after any other error nothing was written.
func (s *store) commit(ctx context.Context, next table, index int) error {
	img, err := encode(next)
	if err != nil {
		return err
	}
	if entries := changed(s.image.array, img.array); !slices.Equal(entries, []int{index}) {
		return fmt.Errorf("a change of entry %d would change the entries %v", index, entries)
	}
	if err := s.write(ctx, img.writes); err != nil {
		return err
	}
	s.table, s.image = next, img
	return nil
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

func (s *store) attempt(writes []write) error {
	for _, w := range writes {
		if _, err := s.dev.WriteAt(w.data, w.off); err != nil {
			return fmt.Errorf("writing %d bytes at %d: %w", len(w.data), w.off, err)
		}
		// Entries and header of a copy share a barrier: the header's checksum tells
		// when the entries did not make it.
		if w.header {
			if err := s.dev.Sync(); err != nil {
				return fmt.Errorf("syncing: %w", err)
			}
		}
	}
	return verify(s.dev, writes)
}

// verify reads back what was written.
func verify(r io.ReaderAt, writes []write) error {
	buf := make([]byte, arrayBytes)
	for _, w := range writes {
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

// format writes the first table onto a blank disk. Until the primary header is there
// the disk still counts as blank (see isBlank); from then on the table is ours and
// complete in one copy, which repair doubles. So a crash leaves nothing in between.
func format(ctx context.Context, dev device, l layout) (id string, err error) {
	t := newTable(l, uuid.NewString(), uuid.NewString())
	img, err := encode(t)
	if err != nil {
		return "", err
	}
	backupArray, backupHeader, primaryArray, primaryHeader := img.writes[0], img.writes[1], img.writes[2], img.writes[3]
	primaryArray.header = true // a barrier between the entries and the header
	mbr := write{off: 0, data: encodeMBR(l)}
	s := &store{dev: dev, table: t, image: img}
	if err := s.write(ctx, []write{primaryArray, primaryHeader, mbr, backupArray, backupHeader}); err != nil {
		return "", err
	}
	return t.id, nil
}

// isBlank reports whether the first and the last MiB are zero. The one exception is
// the entry of our meta partition in a table without header: a format cut short.
func isBlank(r io.ReaderAt, l layout) (bool, error) {
	head := make([]byte, Alignment)
	if _, err := r.ReadAt(head, 0); err != nil {
		return false, fmt.Errorf("reading the first MiB: %w", err)
	}
	at := l.offset(l.primary().tblLBA) + (MetaEntry-1)*entrySize
	slot := head[at : at+entrySize]
	if img, err := encode(newTable(l, uuid.NewString(), uuid.NewString())); err != nil {
		return false, err
	} else if want := img.array[(MetaEntry-1)*entrySize:]; bytes.Equal(slot[:16], want[:16]) && bytes.Equal(slot[32:], want[32:entrySize]) {
		clear(slot)
	}
	tail := make([]byte, Alignment)
	if _, err := r.ReadAt(tail, l.size-Alignment); err != nil {
		return false, fmt.Errorf("reading the last MiB: %w", err)
	}
	return allZero(head) && allZero(tail), nil
}
