package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/google/uuid"
)

// The meta partition has a slot for every entry of the table, in which a volume can have
// a note: whose it is, for the day when nobody else remembers. Nothing here depends on
// notes. A note that is damaged, or that was left by an earlier volume of the same entry,
// counts as none.
//
//	bytes  0 –  7  "berthnot"
//	bytes  8 – 11  CRC-32 (IEEE) of the bytes from 12 to the end of the text, little endian
//	bytes 12 – 13  length of the text in bytes, little endian
//	bytes 14 – 29  GUID of the partition, as in the table
//	bytes 30 – …   the text
const (
	noteBytes  = Alignment / EntryCount
	noteMagic  = "berthnot"
	noteText   = 30
	noteSumEnd = 12

	// MaxNote is the length of the longest note in bytes.
	MaxNote = int(noteBytes) - noteText
)

// encodeNote returns the slot's bytes.
func encodeNote(partition, text string) ([]byte, error) {
	guid, err := uuid.Parse(partition)
	if err != nil {
		return nil, fmt.Errorf("note of volume %.64q: its partition's GUID is not one: %w", partition, err)
	}
	if len(text) > MaxNote {
		return nil, fmt.Errorf("note of volume %s has %d bytes, at most %d are possible", partition, len(text), MaxNote)
	}
	slot := make([]byte, noteBytes)
	copy(slot, noteMagic)
	binary.LittleEndian.PutUint16(slot[noteSumEnd:], uint16(len(text)))
	onDisk := guidToDisk(guid)
	copy(slot[noteSumEnd+2:], onDisk[:])
	copy(slot[noteText:], text)
	binary.LittleEndian.PutUint32(slot[len(noteMagic):], crc32.ChecksumIEEE(slot[noteSumEnd:noteText+len(text)]))
	return slot, nil
}

// decodeNote returns the note of the volume in the slot, or nothing.
func decodeNote(slot []byte, partition string) string {
	guid, err := uuid.Parse(partition)
	if err != nil || int64(len(slot)) != noteBytes || string(slot[:len(noteMagic)]) != noteMagic {
		return ""
	}
	length := int(binary.LittleEndian.Uint16(slot[noteSumEnd:]))
	onDisk := guidToDisk(guid)
	if length > MaxNote || !bytes.Equal(slot[noteSumEnd+2:noteText], onDisk[:]) {
		return ""
	}
	if crc32.ChecksumIEEE(slot[noteSumEnd:noteText+length]) != binary.LittleEndian.Uint32(slot[len(noteMagic):]) {
		return ""
	}
	return string(slot[noteText : noteText+length])
}

// noteAt is where an entry's slot begins on the disk.
func (l layout) noteAt(index int) int64 { return l.meta().Start + int64(index-1)*noteBytes }

// writeNote writes the slot of an entry. It is on the medium with the next
// barrier, which is that of the entry.
func (s *store) writeNote(index int, slot []byte) error {
	// A sector can hold several slots; the medium writes it whole or not at all.
	at := s.table.noteAt(index)
	unit := make([]byte, max(noteBytes, s.table.sector))
	from := at / int64(len(unit)) * int64(len(unit))
	if int64(len(unit)) > noteBytes {
		if _, err := s.dev.ReadAt(unit, from); err != nil {
			return fmt.Errorf("reading the notes: %w", err)
		}
	}
	copy(unit[at-from:], slot)
	if _, err := s.dev.WriteAt(unit, from); err != nil {
		return fmt.Errorf("writing a note: %w", err)
	}
	return nil
}

// readNotes returns the notes of a table's volumes by partition.
func readNotes(dev io.ReaderAt, t table) (map[string]string, error) {
	meta := t.meta()
	slots := make([]byte, meta.Len())
	if _, err := dev.ReadAt(slots, meta.Start); err != nil {
		return nil, fmt.Errorf("reading the notes: %w", err)
	}
	notes := map[string]string{}
	for _, e := range t.entries {
		if !e.isVolume() {
			continue
		}
		at := t.noteAt(e.index) - meta.Start
		if text := decodeNote(slots[at:at+noteBytes], e.guid); text != "" {
			notes[e.guid] = text
		}
	}
	return notes, nil
}
