package disk

import "bytes"

// sectorWrite is a run of sectors with the bytes that the disk will have.
type sectorWrite struct {
	off  int64
	data []byte
}

// copies are the two copies of a table, with the bytes that the disk will have.
type copies struct {
	backup, primary sectorWrite
}

// renderCopies renders both copies of a table.
func renderCopies(l layout, c tableCopy) copies {
	return copies{
		backup:  sectorWrite{l.copyOffset(l.backup()), encodeCopy(l, l.backup(), c)},
		primary: sectorWrite{l.copyOffset(l.primary()), encodeCopy(l, l.primary(), c)},
	}
}

// batch is what is written up to a flush: a run of sectors. The disk has all but the changed ones already.
type batch struct {
	all     sectorWrite
	changed []sectorWrite
}

// wholeBatch is a batch that does not rely on the content of the disk.
func wholeBatch(w sectorWrite) batch { return batch{w, []sectorWrite{w}} }

// diff is the batch that leads from what is on the disk to other bytes at the same place.
func (l layout) diff(from, to sectorWrite) batch {
	b := batch{all: to}
	for at := int64(0); at < int64(len(to.data)); at += l.sector {
		end := at + l.sector
		if bytes.Equal(from.data[at:end], to.data[at:end]) {
			continue
		}
		if last := len(b.changed) - 1; last >= 0 && b.changed[last].end() == to.off+at {
			begin := b.changed[last].off - to.off
			b.changed[last].data = to.data[begin:end]
			continue
		}
		b.changed = append(b.changed, sectorWrite{to.off + at, to.data[at:end]})
	}
	return b
}

// end is where the sectors end on the disk.
func (w sectorWrite) end() int64 { return w.off + int64(len(w.data)) }
