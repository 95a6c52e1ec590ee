package testenv

import (
	"bytes"
	"encoding/binary"
)

// LE32 encodes values in little endian, as on foreign disks.
func LE32(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// Padded joins parts at offsets, with zeros between them.
func Padded(size int, parts map[int][]byte) []byte {
	b := make([]byte, size)
	for off, part := range parts {
		copy(b[off:], part)
	}
	return b
}

// MDSuperblock is a member's superblock of md, version 1, for that place.
func MDSuperblock(at int64) []byte {
	return Padded(512, map[int][]byte{
		0: LE32(0xa92b4efc, 1), 16: bytes.Repeat([]byte{0x5a}, 16), 92: LE32(2),
		144: LE32(uint32(at / 512)), 220: LE32(2),
	})
}
