package disk

import (
	"bytes"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/berthdev/berth/pkg/extent"
)

// go-diskfs encodes and decodes entries, in memory only. This package decides which copy counts, and in which order and
// with which flushes copies are written. It changes one entry at a time, in the bytes of the others. So the bytes of a
// foreign entry stay the same, even if go-diskfs does not understand them.

// decode reads the entries of one copy. The result is valid, or there is an error.
func decode(l layout, c tableCopy) (table, error) {
	entries, err := decodeEntries(l, c)
	if err != nil {
		return table{}, err
	}
	t := table{layout: l, id: c.id, entries: entries}
	if err := t.validate(); err != nil {
		return table{}, err
	}
	return t, nil
}

// decodeEntries has go-diskfs read a copy as if it were the primary of a disk in memory.
func decodeEntries(l layout, c tableCopy) ([]entry, error) {
	m := memory(slices.Concat(encodeMBR(l), encodeCopy(l, l.primary(), c)))
	g, err := gpt.Read(m.file(), int(l.sector), int(l.sector))
	if err != nil {
		return nil, fmt.Errorf("parsing the table: %w", err)
	}
	entries := make([]entry, 0, len(g.Partitions))
	for _, p := range g.Partitions {
		e, err := fromGPT(l, p)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// fromGPT converts an entry that go-diskfs has decoded.
func fromGPT(l layout, p *gpt.Partition) (entry, error) {
	e, err := l.extentOf(p.Start, p.End)
	if err != nil {
		return entry{}, fmt.Errorf("entry %d: %w", p.Index, err)
	}
	return entry{
		index: p.Index, typeGUID: strings.ToLower(string(p.Type)), guid: strings.ToLower(p.GUID),
		extent: e, name: p.Name, attributes: p.Attributes,
	}, nil
}

// extentOf converts an entry's sectors into bytes. It refuses sectors that are not on the disk, so later arithmetic
// cannot overflow.
func (l layout) extentOf(first, last uint64) (extent.Extent, error) {
	if first > last || last > l.lastLBA() {
		return extent.Extent{}, fmt.Errorf("sectors %d to %d are not on the disk of %d sectors", first, last, l.lastLBA()+1)
	}
	return extent.Extent{Start: l.offset(first), End: l.offset(last + 1)}, nil
}

// encodeEntry returns the bytes of an entry, and checks that they read back as e. The bytes do not depend on the
// entry's index, so it is encoded as the only entry of a small table.
func encodeEntry(l layout, e entry) ([]byte, error) {
	first, last := l.sectorsOf(e.extent)
	g := gpt.Table{
		LogicalSectorSize: int(l.sector), PhysicalSectorSize: int(l.sector),
		Partitions: []*gpt.Partition{{
			Index: 1, Start: first, End: last, Type: gpt.Type(strings.ToUpper(e.typeGUID)),
			GUID: strings.ToUpper(e.guid), Name: e.name, Attributes: e.attributes,
		}},
	}
	const defaultEntries = 128 // of a table that go-diskfs makes
	m := make(memory, 2*l.sector+defaultEntries*entrySize)
	if err := g.Write(m.file(), l.size); err != nil {
		return nil, fmt.Errorf("encoding entry %d: %w", e.index, err)
	}
	g2, err := gpt.Read(m.file(), int(l.sector), int(l.sector))
	if err != nil {
		return nil, fmt.Errorf("encoding entry %d: reading it back: %w", e.index, err)
	}
	if len(g2.Partitions) != 1 {
		return nil, fmt.Errorf("encoding entry %d: it reads back as %d entries", e.index, len(g2.Partitions))
	}
	back, err := fromGPT(l, g2.Partitions[0])
	back.index = e.index
	if err != nil || back != e {
		return nil, fmt.Errorf("encoding entry %d: it reads back as %+v instead of %+v: %w", e.index, back, e, err)
	}
	return m[2*l.sector:][:entrySize], nil
}

// sectorsOf is the inverse of extentOf.
func (l layout) sectorsOf(e extent.Extent) (first, last uint64) {
	return uint64(e.Start / l.sector), uint64(e.End/l.sector) - 1
}

// withEntry returns the entries with e in its place.
func (c tableCopy) withEntry(l layout, e entry) (tableCopy, error) {
	b, err := encodeEntry(l, e)
	if err != nil {
		return tableCopy{}, err
	}
	out := c.without(e.index)
	copy(out.entryBytes(e.index), b)
	return out, nil
}

// without returns the entries without the one at that index.
func (c tableCopy) without(index int) tableCopy {
	out := tableCopy{id: c.id, array: slices.Clone(c.array)}
	clear(out.entryBytes(index))
	return out
}

// entryBytes is the bytes of an entry.
func (c tableCopy) entryBytes(index int) []byte {
	return c.array[(index-1)*entrySize : index*entrySize]
}

// memory is the beginning of a disk, on which go-diskfs works. The backup, which go-diskfs writes behind it, is
// dropped: this package writes its own.
type memory []byte

func (m memory) file() *memoryFile { return &memoryFile{bytes.NewReader(m), m} }

type memoryFile struct {
	*bytes.Reader
	memory memory
}

func (f *memoryFile) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) <= int64(len(f.memory)) {
		copy(f.memory[off:], b)
	}
	return len(b), nil
}

func (f *memoryFile) Close() error               { return nil }
func (f *memoryFile) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }
