package disk

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"
)

// go-diskfs encodes and decodes the table, on memory only: this package decides which
// copy is read, and in which order and with which barriers the copies are written.

// decode reads the entries of one copy. The result is valid, or there is an error.
func decode(l layout, c copyOfTable) (table, error) {
	g, err := read(l, c)
	if err != nil {
		return table{}, err
	}
	t := table{layout: l, id: c.id, entries: make([]entry, 0, len(g.Partitions))}
	for _, p := range g.Partitions {
		e, err := l.extentOf(p.Start, p.End)
		if err != nil {
			return table{}, fmt.Errorf("entry %d: %w", p.Index, err)
		}
		t.entries = append(t.entries, entry{
			index: p.Index, kind: strings.ToLower(string(p.Type)), guid: strings.ToLower(p.GUID),
			extent: e, name: p.Name, attributes: p.Attributes,
		})
	}
	if err := t.validate(); err != nil {
		return table{}, err
	}
	return t, nil
}

// read lets go-diskfs parse a copy as if it were the primary of a disk in memory.
func read(l layout, c copyOfTable) (*gpt.Table, error) {
	id, err := uuid.Parse(c.id)
	if err != nil {
		return nil, fmt.Errorf("disk GUID %q: %w", c.id, err)
	}
	head := slices.Concat(
		encodeMBR(l),
		encodeHeader(l, l.primary(), id, crc32.ChecksumIEEE(c.array)),
		c.array)
	g, err := gpt.Read(&memory{Reader: bytes.NewReader(head)}, int(l.sector), int(l.sector))
	if err != nil {
		return nil, fmt.Errorf("parsing the table: %w", err)
	}
	// Sector 0 is ours to write, once: go-diskfs cuts its length short above 2 TiB.
	g.ProtectiveMBR = false
	return g, nil
}

// write is one write of the table: a run of sectors, and whether it ends a copy.
type write struct {
	off    int64
	data   []byte
	header bool
}

// image is a table as it is to lie on the disk: the writes in their order (backup
// entries, backup header, primary entries, primary header), and the entries once more.
type image struct {
	writes []write
	array  []byte
}

// encode renders a valid table. It proves the result: what it returns reads back as
// the same table.
func encode(t table) (image, error) {
	if err := t.validate(); err != nil {
		return image{}, err
	}
	g, err := read(t.layout, copyOfTable{id: t.id, array: make([]byte, arrayBytes)})
	if err != nil {
		return image{}, err
	}
	for _, e := range t.entries {
		first, last := t.sectorsOf(e.extent)
		g.Partitions = append(g.Partitions, &gpt.Partition{
			Index: e.index, Start: first, End: last, Type: gpt.Type(strings.ToUpper(e.kind)),
			GUID: strings.ToUpper(e.guid), Name: e.name, Attributes: e.attributes,
		})
	}
	var m memory
	if err := g.Write(&m, t.size); err != nil {
		return image{}, fmt.Errorf("encoding the table: %w", err)
	}
	img := image{writes: m.writes}
	if err := img.check(t); err != nil {
		return image{}, fmt.Errorf("the encoded table is not what was meant: %w", err)
	}
	return img, nil
}

// check holds that an image has the four writes in their order, in the places and
// with the headers of our format, and that its entries read back as t.
func (img *image) check(t table) error {
	if len(img.writes) != 4 {
		return fmt.Errorf("%d writes instead of 4", len(img.writes))
	}
	for i, s := range []site{t.backup(), t.primary()} {
		array, header := &img.writes[2*i], &img.writes[2*i+1]
		if array.off != t.offset(s.tblLBA) || len(array.data) != arrayBytes || header.off != t.offset(s.headerLBA) || int64(len(header.data)) != t.sector {
			return fmt.Errorf("%s copy is in the wrong place", s.name)
		}
		id, crc, err := checkHeader(header.data, t.layout, s)
		if err != nil {
			return err
		}
		if id != t.id || crc != crc32.ChecksumIEEE(array.data) {
			return fmt.Errorf("%s header has another GUID or checksum", s.name)
		}
		header.header = true
	}
	if !bytes.Equal(img.writes[0].data, img.writes[2].data) {
		return fmt.Errorf("the two copies differ")
	}
	img.array = img.writes[0].data
	back, err := decode(t.layout, copyOfTable{id: t.id, array: img.array})
	if err != nil {
		return err
	}
	if !slices.Equal(back.entries, t.entries) {
		return fmt.Errorf("the entries differ")
	}
	return nil
}

// changed returns the indexes of the entries in which two arrays differ.
func changed(a, b []byte) []int {
	var indexes []int
	for i := range EntryCount {
		if at := i * entrySize; !bytes.Equal(a[at:at+entrySize], b[at:at+entrySize]) {
			indexes = append(indexes, i+1)
		}
	}
	return indexes
}

// memory is the device that go-diskfs works on: it reads from a buffer, and what it
// writes is only noted down.
type memory struct {
	*bytes.Reader
	writes []write
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.writes = append(m.writes, write{off: off, data: slices.Clone(b)})
	return len(b), nil
}

func (m *memory) Close() error               { return nil }
func (m *memory) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }

var _ io.WriterAt = (*memory)(nil)
