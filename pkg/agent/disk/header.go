package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/google/uuid"
)

// headerBytes is the length of a header. The rest of its sector is zero.
const headerBytes = 92

var (
	headerSignature = []byte("EFI PART")
	headerRevision  = []byte{0, 0, 1, 0}
)

// errDamaged: a copy of the table is missing, or its checksum is wrong. Anything may have written it, and the other
// copy may be intact.
var errDamaged = errors.New("damaged")

// errNotOurs: a copy is intact, so a program wrote it on purpose, but it is not a table as this package writes it. Then
// the other copy must not be used.
var errNotOurs = errors.New("not a table of ours")

// tableCopy is one copy of the table, in the bytes that the disk has.
type tableCopy struct {
	id    string // the disk's GUID, lower case
	array []byte // all entries
	clean bool   // exactly the bytes that this package would write
}

// readCopy reads one copy. It accepts only the geometry that this package writes, before it computes anything from it.
// So hostile numbers have no effect. Errors wrap errDamaged or errNotOurs, or they come from the device. With damaged
// entries it still returns the header's id.
func readCopy(r io.ReaderAt, l layout, at location) (tableCopy, error) {
	b := make([]byte, l.copyBytes())
	if _, err := r.ReadAt(b, l.copyOffset(at)); err != nil {
		return tableCopy{}, fmt.Errorf("reading the %s table: %w", at.name, err)
	}
	header, array := l.split(at, b)
	id, arrayCRC, err := checkHeader(header, l, at)
	if err != nil {
		return tableCopy{}, fmt.Errorf("%s header: %w", at.name, err)
	}
	if got := crc32.ChecksumIEEE(array); got != arrayCRC {
		return tableCopy{id: id}, fmt.Errorf("%s entries: checksum is %#x, the header says %#x: %w", at.name, got, arrayCRC, errDamaged)
	}
	c := tableCopy{id: id, array: array}
	// No checksum covers the rest of the header's sector.
	c.clean = bytes.Equal(b, encodeCopy(l, at, c))
	return c, nil
}

// checkHeader checks a header's sector, and returns the disk's GUID and the checksum of the entries.
func checkHeader(b []byte, l layout, at location) (id string, arrayCRC uint32, err error) {
	le := binary.LittleEndian
	if !bytes.Equal(b[0:8], headerSignature) {
		return "", 0, fmt.Errorf("no signature: %w", errDamaged)
	}
	if size := le.Uint32(b[12:]); size != headerBytes {
		// The checksum covers as many bytes as the header's length field has. A header of another length cannot be
		// distinguished from a damaged one, and is not ours in either case.
		return "", 0, fmt.Errorf("is %d bytes long instead of %d: %w", size, headerBytes, errDamaged)
	}
	if got, want := headerCRC(b), le.Uint32(b[16:]); got != want {
		return "", 0, fmt.Errorf("checksum is %#x, the header says %#x: %w", got, want, errDamaged)
	}
	for _, f := range []struct {
		name      string
		got, want uint64
	}{
		{"revision", uint64(le.Uint32(b[8:])), uint64(le.Uint32(headerRevision))},
		{"reserved field", uint64(le.Uint32(b[20:])), 0},
		{"own sector", le.Uint64(b[24:]), at.headerLBA},
		{"sector of the other copy", le.Uint64(b[32:]), at.otherLBA},
		{"first usable sector", le.Uint64(b[40:]), l.firstUsable()},
		{"last usable sector", le.Uint64(b[48:]), l.lastUsable()},
		{"sector of the entries", le.Uint64(b[72:]), at.arrayLBA},
		{"number of entries", uint64(le.Uint32(b[80:])), EntryCount},
		{"size of an entry", uint64(le.Uint32(b[84:])), entrySize},
	} {
		if f.got != f.want {
			return "", 0, fmt.Errorf("%s is %d, in a table of ours for this disk it is %d: %w", f.name, f.got, f.want, errNotOurs)
		}
	}
	guid := decodeGUID(b[56:72])
	if guid == uuid.Nil {
		return "", 0, fmt.Errorf("the disk has no GUID: %w", errNotOurs)
	}
	return guid.String(), le.Uint32(b[88:]), nil
}

// encodeCopy renders a copy for the given location.
func encodeCopy(l layout, at location, c tableCopy) []byte {
	b := make([]byte, l.copyBytes())
	header, array := l.split(at, b)
	copy(array, c.array)
	encodeHeader(header, l, at, c.id, crc32.ChecksumIEEE(array))
	return b
}

// encodeHeader renders the sector of a header. arrayCRC is the checksum of the entries.
func encodeHeader(h []byte, l layout, at location, id string, arrayCRC uint32) {
	le := binary.LittleEndian
	clear(h)
	copy(h, headerSignature)
	copy(h[8:], headerRevision)
	le.PutUint32(h[12:], headerBytes)
	le.PutUint64(h[24:], at.headerLBA)
	le.PutUint64(h[32:], at.otherLBA)
	le.PutUint64(h[40:], l.firstUsable())
	le.PutUint64(h[48:], l.lastUsable())
	guid := encodeGUID(uuid.MustParse(id))
	copy(h[56:], guid[:])
	le.PutUint64(h[72:], at.arrayLBA)
	le.PutUint32(h[80:], EntryCount)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], arrayCRC)
	le.PutUint32(h[16:], headerCRC(h))
}

// headerCRC is the checksum of a header, taken with the checksum's own field zero.
func headerCRC(b []byte) uint32 {
	var h [headerBytes]byte
	copy(h[:], b)
	clear(h[16:20])
	return crc32.ChecksumIEEE(h[:])
}

// decodeGUID reads a GUID from the disk, where its first three groups are little-endian. encodeGUID is its inverse.
func decodeGUID(b []byte) uuid.UUID {
	var u uuid.UUID
	copy(u[:], b)
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	return u
}

func encodeGUID(u uuid.UUID) uuid.UUID { return decodeGUID(u[:]) }

// The protective master boot record in sector 0 shows tools that do not know GPT that the disk is used.
const (
	mbrBytes     = 512
	mbrPartition = 446
	mbrGPT       = 0xee
)

// mbrState says what sector 0 has.
type mbrState int

const (
	mbrProtective mbrState = iota
	mbrMissing             // all zero: never written, or lost
	mbrForeign             // another program's
)

// encodeMBR writes a protective record: one partition from sector 1 to the end of the disk, or as far as its 32 bits
// reach.
func encodeMBR(l layout) []byte {
	le := binary.LittleEndian
	b := make([]byte, l.sector)
	p := b[mbrPartition:]
	p[2] = 2 // cylinder/head/sector of sector 1, and the largest there is
	p[4] = mbrGPT
	p[5], p[6], p[7] = 0xff, 0xff, 0xff
	le.PutUint32(p[8:], 1)
	le.PutUint32(p[12:], uint32(min(l.lastLBA(), 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// checkMBR returns what sector 0 has. It ignores boot code, disk signature and length: other tools write their own.
func checkMBR(b []byte) mbrState {
	b = b[:mbrBytes]
	if allZero(b) {
		return mbrMissing
	}
	p := b[mbrPartition:]
	if b[510] == 0x55 && b[511] == 0xaa && p[4] == mbrGPT &&
		binary.LittleEndian.Uint32(p[8:]) == 1 && allZero(p[16:64]) {
		return mbrProtective
	}
	return mbrForeign
}

var zeros [1 << 16]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
