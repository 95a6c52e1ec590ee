package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// The meta partition has a slot of 1 KiB for every entry of the table. A volume's slot holds its note, how it is wiped,
// and the progress of its wipe. The note names its owner, in case the API server has lost it. The table does not depend
// on the slot. A slot counts as empty if it is damaged, or if an earlier volume of the same entry left it.
//
//	bytes  0 –  7  "berthvol"
//	bytes  8 – 11  CRC-32 (IEEE) of the bytes from 12 to the end of the contents, little endian
//	bytes 12 – 13  length of the contents in bytes, little endian
//	bytes 14 – 29  GUID of the partition, as in the table
//	bytes 30 – …   the contents:
//	byte  30       wipe policy, see policyCodes; 0 if none was given
//	byte  31       method of the wipe under way, see methodCodes; 0 if there is none
//	bytes 32 – 39  wipe rate in bytes a second, little endian; 0 is without limit
//	bytes 40 – 47  bytes that the method has zeroed, from the volume's start, little endian
//	bytes 48 – 55  bytes of these that were read back, little endian
//	bytes 56 – …   the note
//
// The fields lie in the first 512 bytes, so a power cut while progress is written leaves the old slot or the new one.
// Slots of earlier versions begin with "berthnot", and hold the note alone.
const (
	slotBytes    = Alignment / EntryCount
	oldSlotMagic = "berthnot"
	slotMagic    = "berthvol"
	// slotSumEnd is where the checksum ends, and the bytes that it covers begin.
	slotSumEnd = 12
	// slotContentsAt is where the contents begin.
	slotContentsAt = 30
	// slotFieldBytes is the length of the fields before the note.
	slotFieldBytes = 26

	// MaxNote is the length of the longest note in bytes.
	MaxNote = int(slotBytes) - slotContentsAt - slotFieldBytes
)

// slot is what the meta partition keeps of a volume.
type slot struct {
	note     string
	wipe     WipeSettings
	progress progress
}

// policyCodes and methodCodes are the numbers of wipe policies and methods on the disk, by index.
var (
	policyCodes = []WipePolicy{"", WipeZero, WipeOverwrite, WipeSecureDiscard, WipeNone}
	methodCodes = []string{"", methodPunch, methodZeroOut, methodOverwrite, methodSecureDiscard}
)

// encode returns the slot's bytes.
func (s slot) encode(partition string) ([]byte, error) {
	policy, method := slices.Index(policyCodes, s.wipe.Policy), slices.Index(methodCodes, s.progress.method)
	if policy < 0 {
		return nil, fmt.Errorf("volume %.64q: the wipe policy %.64q does not exist", partition, s.wipe.Policy)
	}
	if len(s.note) > MaxNote {
		return nil, fmt.Errorf("the note of volume %.64q has %d bytes, at most %d are possible", partition, len(s.note), MaxNote)
	}
	contents := make([]byte, slotFieldBytes, slotFieldBytes+len(s.note))
	contents[0] = byte(policy)
	le := binary.LittleEndian
	le.PutUint64(contents[2:], uint64(s.wipe.Rate))
	if method > 0 { // the disk has no code for a method that tests add
		contents[1] = byte(method)
		le.PutUint64(contents[10:], uint64(s.progress.zeroed))
		le.PutUint64(contents[18:], uint64(s.progress.verified))
	}
	b, err := encodeSlot(slotMagic, partition, append(contents, s.note...))
	if err != nil {
		return nil, fmt.Errorf("volume %.64q: %w", partition, err)
	}
	return b, nil
}

// decodeVolumeSlot returns what the slot holds of the volume. Values that a newer agent has written, and this one does
// not know, count as not given.
func decodeVolumeSlot(b []byte, partition string) slot {
	if text, old := decodeSlot(b, oldSlotMagic, partition); old {
		return slot{note: string(text)}
	}
	contents, found := decodeSlot(b, slotMagic, partition)
	if !found || len(contents) < slotFieldBytes {
		return slot{}
	}
	le := binary.LittleEndian
	s := slot{note: string(contents[slotFieldBytes:])}
	if policy := int(contents[0]); policy > 0 && policy < len(policyCodes) {
		s.wipe = WipeSettings{Policy: policyCodes[policy], Rate: max(0, int64(le.Uint64(contents[2:])))}
	}
	if method := int(contents[1]); method > 0 && method < len(methodCodes) {
		s.progress = progress{methodCodes[method], int64(le.Uint64(contents[10:])), int64(le.Uint64(contents[18:]))}
	}
	return s
}

// encodeSlot returns the bytes of a slot: the contents, bound to a partition.
func encodeSlot(magic, partition string, contents []byte) ([]byte, error) {
	guid, err := uuid.Parse(partition)
	if err != nil {
		return nil, fmt.Errorf("its partition's GUID is not one: %w", err)
	}
	if most := int(slotBytes) - slotContentsAt; len(contents) > most {
		return nil, fmt.Errorf("what is to be kept of it has %d bytes, at most %d are possible", len(contents), most)
	}
	b := make([]byte, slotBytes)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[slotSumEnd:], uint16(len(contents)))
	onDisk := encodeGUID(guid)
	copy(b[slotSumEnd+2:], onDisk[:])
	copy(b[slotContentsAt:], contents)
	binary.LittleEndian.PutUint32(b[len(magic):], crc32.ChecksumIEEE(b[slotSumEnd:slotContentsAt+len(contents)]))
	return b, nil
}

// decodeSlot is the inverse of encodeSlot. A slot that is damaged, or another partition's, is not found.
func decodeSlot(b []byte, magic, partition string) (contents []byte, found bool) {
	guid, err := uuid.Parse(partition)
	if err != nil || int64(len(b)) != slotBytes || string(b[:len(magic)]) != magic {
		return nil, false
	}
	end := slotContentsAt + int(binary.LittleEndian.Uint16(b[slotSumEnd:]))
	onDisk := encodeGUID(guid)
	if end > int(slotBytes) || !bytes.Equal(b[slotSumEnd+2:slotContentsAt], onDisk[:]) {
		return nil, false
	}
	if crc32.ChecksumIEEE(b[slotSumEnd:end]) != binary.LittleEndian.Uint32(b[len(magic):]) {
		return nil, false
	}
	return b[slotContentsAt:end], true
}

// slotOffset is where an entry's slot begins on the disk.
func (l layout) slotOffset(index int) int64 { return l.meta().Start + int64(index-1)*slotBytes }

// slotUnit is the extent that must be written as a whole to change an entry's slot, because a sector can hold several.
// skip is where in it the slot begins.
func (l layout) slotUnit(index int) (unit extent.Extent, skip int64) {
	at, length := l.slotOffset(index), max(slotBytes, l.sector)
	start := at / length * length
	return extent.New(start, length), at - start
}

// slotWrite is the write that changes the slot of an entry. The slots that share its sector are read first.
func (s *store) slotWrite(index int, slot []byte) (sectorWrite, error) {
	unit, skip := s.table.slotUnit(index)
	w := sectorWrite{unit.Start, make([]byte, unit.Len())}
	if unit.Len() > slotBytes {
		if _, err := s.dev.ReadAt(w.data, w.off); err != nil {
			return sectorWrite{}, fmt.Errorf("reading the notes: %w", err)
		}
	}
	copy(w.data[skip:], slot)
	return w, nil
}

// writeSlot writes the slot of an entry. It is on the medium after the next flush.
func (s *store) writeSlot(index int, slot []byte) error {
	w, err := s.slotWrite(index, slot)
	if err != nil {
		return err
	}
	if _, err := s.dev.WriteAt(w.data, w.off); err != nil {
		return fmt.Errorf("writing a note: %w", err)
	}
	return nil
}

// readSlots returns what is kept of a table's volumes, by partition.
func readSlots(dev io.ReaderAt, t table) (map[string]slot, error) {
	meta := t.meta()
	all := make([]byte, meta.Len())
	if _, err := dev.ReadAt(all, meta.Start); err != nil {
		return nil, fmt.Errorf("reading the notes: %w", err)
	}
	slots := map[string]slot{}
	for _, e := range t.entries {
		if !e.isVolume() && !e.isPiece() {
			continue
		}
		at := t.slotOffset(e.index) - meta.Start
		s := decodeVolumeSlot(all[at:at+slotBytes], e.guid)
		if s == (slot{}) && e.isVolume() {
			s = t.slotOfMoved(all[at:at+slotBytes], e)
		}
		if s != (slot{}) {
			slots[e.guid] = s
		}
	}
	return slots, nil
}

// slotOfMoved returns what the slot of a move's other place holds. A crash beside the switch leaves the slot of the
// moved volume there. It says how the volume is wiped, and that applies to the other place as well.
func (t table) slotOfMoved(b []byte, e entry) slot {
	if e.phase().HasDevice() {
		return slot{}
	}
	moved, err := t.volume(decodeGUID(b[slotSumEnd+2 : slotContentsAt]).String())
	if err != nil || moved.name != e.name {
		return slot{}
	}
	return slot{wipe: decodeVolumeSlot(b, moved.guid).wipe}
}

// readSlots reads the slots of the volumes. If they cannot be read, the disk serves without them.
func (d *Disk) readSlots(ctx context.Context) {
	var err error
	if d.slots, err = readSlots(d.device, d.store.table); err != nil {
		klog.FromContext(ctx).Error(err, "Volumes' notes are lost", "device", d.device.path, "disk", d.store.table.id)
		d.slots = map[string]slot{}
	}
}

// writeSlot writes a volume's slot in the meta partition. It is on the medium after the next flush.
func (d *Disk) writeSlot(e entry, s slot) error {
	b, err := s.encode(e.guid)
	if err != nil {
		return err
	}
	if err := d.store.writeSlot(e.index, b); err != nil {
		return err
	}
	d.slots[e.guid] = s
	return nil
}

// writeSlotProven is writeSlot with a flush, after which the slot is read back.
func (d *Disk) writeSlotProven(e entry, s slot) error {
	b, err := s.encode(e.guid)
	if err != nil {
		return err
	}
	w, err := d.store.slotWrite(e.index, b)
	if err != nil {
		return err
	}
	if err := d.store.tryWrite([]batch{wholeBatch(w)}); err != nil {
		return fmt.Errorf("writing a note: %w", err)
	}
	if err := d.store.verify(w); err != nil {
		return fmt.Errorf("writing a note: %w", err)
	}
	d.slots[e.guid] = s
	return nil
}

// SetWipe records how a volume is wiped, for the case that its class is deleted. Errors: ErrNotFound, ErrInUse (the
// volume is being wiped), ErrOutOfService.
func (d *Disk) SetWipe(ctx context.Context, partition string, w WipeSettings) error {
	err := d.runInWorker(ctx, func(ctx context.Context) error {
		if err := w.validate(); err != nil {
			return err
		}
		e, err := d.store.table.volume(partition)
		if err != nil {
			return err
		}
		if e.phase() == Wiping {
			return fmt.Errorf("volume %s is being wiped: %w", partition, ErrInUse)
		}
		s := d.slots[partition]
		if s.wipe == w {
			return nil
		}
		s.wipe = w
		// The entry must still be the volume's before its slot is written.
		if err := d.recheck(ctx); err != nil {
			return err
		}
		if err := errors.Join(d.writeSlot(e, s), d.store.dev.Sync()); err != nil {
			if mayBeGone(err) {
				return errors.Join(err, d.recheck(ctx))
			}
			return err
		}
		d.publish()
		return nil
	})
	if err != nil {
		return fmt.Errorf("setting how volume %s is wiped: %w", partition, err)
	}
	return nil
}
