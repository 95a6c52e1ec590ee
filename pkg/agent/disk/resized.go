package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"k8s.io/klog/v2"
)

// A disk can have another size than the one for which its table was made. It grew if a virtual disk was resized, or the
// disk was copied to a larger one. Then the table is first extended to the new end. If it was truncated, volumes may
// lie behind the disk's end, and nothing is done to it.

// findResized finds a table of ours that was made for a disk of another size. It reads the primary, because the place
// of the backup is not known. Only device errors are errors.
func findResized(r io.ReaderAt, l layout) (c tableCopy, was layout, found bool, err error) {
	header := make([]byte, l.sector)
	if _, err := r.ReadAt(header, l.offset(l.primary().headerLBA)); err != nil {
		return c, was, false, fmt.Errorf("reading the primary header: %w", err)
	}
	last := binary.LittleEndian.Uint64(header[32:])
	if last >= uint64(maxDiskSize/l.sector) {
		return c, was, false, nil
	}
	size := l.offset(last + 1)
	if size == l.size || unsuitable(size, l.sector) != "" {
		return c, was, false, nil
	}
	was = layout{size: size, sector: l.sector}
	c, err = readCopy(r, was, was.primary())
	if errors.Is(err, errDamaged) || errors.Is(err, errNotOurs) {
		return c, was, false, nil
	}
	return c, was, err == nil, err
}

// findOtherSectorSize is the sector size for which the disk has a table of ours, if the disk has sectors of another
// size now. Its enclosure was changed, or it was copied. The result is 0 if there is no such table.
func findOtherSectorSize(r io.ReaderAt, l layout) (int64, error) {
	const largest = 4096
	head := make([]byte, Alignment)
	if _, err := r.ReadAt(head, 0); err != nil {
		return 0, fmt.Errorf("reading the first MiB: %w", err)
	}
	for sector := int64(512); sector <= largest; sector *= 2 {
		other, err := newLayout(l.size/sector*sector, sector)
		if err != nil || sector == l.sector {
			continue
		}
		if c, err := readCopy(bytes.NewReader(head), other, other.primary()); err == nil && c.isOurs() {
			return sector, nil
		}
		if c, _, found, err := findResized(bytes.NewReader(head), other); err == nil && found && c.isOurs() {
			return sector, nil
		}
	}
	return 0, nil
}

// layoutOf is the layout for which the table was made, on a disk with the given one.
func (f findings) layoutOf(l layout) layout {
	if f.madeFor.size != 0 {
		return f.madeFor
	}
	return l
}

// describeResize describes the change of the disk's size. It is empty if there was none.
func (f findings) describeResize(l layout) string {
	switch was := f.madeFor.size; {
	case was == 0:
		return ""
	case was < l.size:
		return fmt.Sprintf("the disk has grown: its partition table was made for %d bytes, it has %d", was, l.size)
	default:
		return fmt.Sprintf("the disk is truncated: its partition table was made for %d bytes, it has %d; volumes may lie behind its end; make it as large again as it was, or wipe its first and last MiB if nothing on it is needed", was, l.size)
	}
}

func (f findings) truncated(l layout) bool { return f.madeFor.size > l.size }
func (f findings) grown(l layout) bool     { return f.madeFor.size != 0 && f.madeFor.size < l.size }

// extend changes the table of a disk that grew to the present size. The entries stay the same. First the backup is
// written, to a place that was free. Then the primary changes in the one sector of its header. So at every moment the
// primary counts, with the old size or the new one.
func extend(ctx context.Context, dev device, l layout, f findings) error {
	t, err := decode(f.madeFor, f.current)
	if err != nil {
		return fmt.Errorf("the partition table is invalid: %w", err)
	}
	t.layout = l
	if err := t.validate(); err != nil {
		return fmt.Errorf("the partition table would be invalid on the disk as it is now: %w", err)
	}
	sector0 := make([]byte, l.sector)
	if _, err := dev.ReadAt(sector0, 0); err != nil {
		return fmt.Errorf("reading sector 0: %w", err)
	}
	s := newStore(dev, t, f.current)
	if err := s.checkEndIsFree(f.madeFor); err != nil {
		return err
	}
	var batches []batch
	if f.badMBR || bytes.Equal(sector0, encodeMBR(f.madeFor)) {
		batches = append(batches, wholeBatch(sectorWrite{0, encodeMBR(l)}))
	}
	batches = append(batches, wholeBatch(s.onDisk.backup), wholeBatch(s.onDisk.primary))
	// If the disk shrinks again, the old backup must not count as the newest table.
	old := sectorWrite{f.madeFor.copyOffset(f.madeFor.backup()), make([]byte, f.madeFor.copyBytes())}
	old.data = old.data[:max(0, min(old.end(), s.onDisk.backup.off)-old.off)]
	if len(old.data) > 0 {
		batches = append(batches, wholeBatch(old))
	}
	klog.FromContext(ctx).Info("The disk has grown, its partition table is extended", "disk", t.id, "from", f.madeFor.size, "to", l.size)
	return s.write(ctx, batches)
}

// checkEndIsFree returns an error unless the end of a disk that grew is zero, or has a part of the new backup already.
// Before the old end was the old backup, which is ours.
func (s *store) checkEndIsFree(was layout) error {
	l := s.table.layout
	from := max(l.size-Alignment, was.size)
	got, want := make([]byte, l.size-from), make([]byte, l.size-from)
	if _, err := s.dev.ReadAt(got, from); err != nil {
		return fmt.Errorf("reading the last MiB: %w", err)
	}
	backup := s.onDisk.backup
	skip := max(0, from-backup.off)
	copy(want[max(0, backup.off-from):], backup.data[skip:])
	const unit = 512 // what a disk writes whole or not at all, even one with larger sectors
	for at := 0; at < len(got); at += unit {
		b := got[at : at+unit]
		if !allZero(b) && !bytes.Equal(b, want[at:at+unit]) {
			return fmt.Errorf("the disk has grown from %d to %d bytes, and there is something at %d, where its partition table would have to lie: if it is not needed, zero the last MiB", was.size, l.size, from+int64(at))
		}
	}
	return nil
}
