package faults

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
)

// mediumImage is the content of a medium: the chunks that are not known to be zero.
type mediumImage map[int64]*[chunkBytes]byte

const chunkBytes = 16 << 10

// eachChunk calls f with the parts of a run of bytes, chunk by chunk.
func eachChunk(off, n int64, f func(chunk, within, at, n int64)) {
	for at := int64(0); at < n; {
		chunk, within := (off+at)/chunkBytes, (off+at)%chunkBytes
		length := min(chunkBytes-within, n-at)
		f(chunk, within, at, length)
		at += length
	}
}

func (m mediumImage) read(b []byte, off int64) {
	eachChunk(off, int64(len(b)), func(chunk, within, at, n int64) {
		if c := m[chunk]; c != nil {
			copy(b[at:at+n], c[within:])
		} else {
			clear(b[at : at+n])
		}
	})
}

func (m mediumImage) write(b []byte, off int64) {
	eachChunk(off, int64(len(b)), func(chunk, within, at, n int64) {
		if m[chunk] == nil {
			m[chunk] = new([chunkBytes]byte)
		}
		copy(m[chunk][within:], b[at:at+n])
	})
}

func (m mediumImage) zero(off, length int64) {
	eachChunk(off, length, func(chunk, within, _, n int64) {
		switch c := m[chunk]; {
		case c == nil:
		case n == chunkBytes:
			delete(m, chunk)
		default:
			clear(c[within : within+n])
		}
	})
}

// grows reports whether a write needs room that the image does not have yet.
func (m mediumImage) grows(off, length int64) bool {
	grows := false
	eachChunk(off, length, func(chunk, _, _, _ int64) { grows = grows || m[chunk] == nil })
	return grows
}

func (m mediumImage) clone() mediumImage {
	other := make(mediumImage, len(m))
	for i, c := range m {
		copied := *c
		other[i] = &copied
	}
	return other
}

// sum is a hash of whole chunks, and whether all of them are zero.
func (m mediumImage) sum(off, length int64) (hash [sha256.Size]byte, zero bool) {
	h, zero := sha256.New(), true
	eachChunk(off, length, func(chunk, _, _, _ int64) {
		if c := m[chunk]; c != nil && *c != [chunkBytes]byte{} {
			zero = false
			_ = binary.Write(h, binary.LittleEndian, chunk)
			h.Write(c[:])
		}
	})
	h.Sum(hash[:0])
	return hash, zero
}

// medium is a disk with a volatile cache.
type medium struct {
	size         int64
	now, durable mediumImage
	// pending are the changes since the last flush, in their order.
	pending []change
}

// change is one write. Without data it is a write of zeros.
type change struct {
	off, length int64
	data        []byte
}

func newMedium(size int64) *medium {
	return &medium{size: size, now: mediumImage{}, durable: mediumImage{}}
}

func (m mediumImage) apply(c change) {
	if c.data == nil {
		m.zero(c.off, c.length)
	} else {
		m.write(c.data, c.off)
	}
}

func (m *medium) change(c change) {
	m.now.apply(c)
	m.pending = append(m.pending, c)
}

// flush empties the cache onto the medium.
func (m *medium) flush() {
	for _, c := range m.pending {
		m.durable.apply(c)
	}
	m.pending = nil
}

// cut is a power cut: of the changes that were not flushed, some sectors are on the medium and others are not, in any
// order. kept is the percentage of those that are. If ordered is set, the cache was written in its order, up to some
// point. In the span whole, each 4 KiB of one write stay together. ext4 writes its superblock, of 1 KiB, without its
// journal when it unmounts, and cannot be mounted if that is torn.
func (m *medium) cut(sector int64, whole Span, kept int, ordered bool, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(sector)))
	pending := m.pending
	if ordered && len(pending) > 0 {
		pending, kept = pending[:random.IntN(len(pending)+1)], 100
	}
	for _, c := range pending {
		// Large writes are torn in few places: a choice for each sector would take long.
		atom := sector
		if c.off >= whole.Off && c.off < whole.Off+whole.Length {
			atom = 4096
		}
		unit := max(atom, c.length/64/atom*atom)
		for off := int64(0); off < c.length; off += unit {
			if random.IntN(100) >= kept {
				continue
			}
			part := change{off: c.off + off, length: min(unit, c.length-off)}
			if c.data != nil {
				part.data = c.data[off : off+part.length]
			}
			m.durable.apply(part)
		}
	}
	m.now, m.pending = m.durable.clone(), nil
}
