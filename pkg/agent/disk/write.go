package disk

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"k8s.io/klog/v2"
)

// write is a run of sectors as it is to lie on the disk.
type write struct {
	off  int64
	data []byte
}

// copies are the two copies of a table, each as it is to lie on the disk.
type copies struct {
	backup, primary write
}

func render(l layout, c copyOfTable) copies {
	return copies{
		backup:  write{l.copyAt(l.backup()), encodeCopy(l, l.backup(), c)},
		primary: write{l.copyAt(l.primary()), encodeCopy(l, l.primary(), c)},
	}
}

// batch is what is written up to a barrier: a run of sectors, of which the disk has all
// but the changed ones already.
type batch struct {
	all     write
	changed []write
}

// whole is a batch that relies on nothing on the disk.
func whole(w write) batch { return batch{w, []write{w}} }

// change is the batch that leads from what is on the disk to other bytes at the same place.
func (l layout) change(from, to write) batch {
	s := batch{all: to}
	for at := int64(0); at < int64(len(to.data)); at += l.sector {
		end := at + l.sector
		if bytes.Equal(from.data[at:end], to.data[at:end]) {
			continue
		}
		if last := len(s.changed) - 1; last >= 0 && s.changed[last].end() == to.off+at {
			begin := s.changed[last].off - to.off
			s.changed[last].data = to.data[begin:end]
			continue
		}
		s.changed = append(s.changed, write{to.off + at, to.data[at:end]})
	}
	return s
}

func (w write) end() int64 { return w.off + int64(len(w.data)) }

// write brings the batches to the medium, first only what they change, and reads all of
// it back. After an error that wraps ErrOutOfService the state of the disk is unknown.
func (s *store) write(ctx context.Context, batches []batch) error {
	if err := s.begin(ctx, batches, len(batches)); err != nil {
		return err
	}
	return s.finish(ctx)
}

// begin is the first part of write: so many of the batches are on the medium when it
// returns. The rest, and reading back, is left to finish.
func (s *store) begin(ctx context.Context, batches []batch, now int) error {
	if err := s.attempt(batches[:now]); err != nil {
		s.unproven, s.unwritten = batches, nil
		return s.writeAgain(ctx, err)
	}
	s.unproven, s.unwritten = batches, batches[now:]
	return nil
}

// finish ends what begin began, unless that was done.
func (s *store) finish(ctx context.Context) error {
	if !s.unfinished() {
		return nil
	}
	left := s.unwritten
	s.unwritten = nil
	err := s.attempt(left)
	if err == nil {
		err = s.readBack()
	}
	if err != nil {
		return s.writeAgain(ctx, err)
	}
	return nil
}

// unfinished reports whether there is anything for finish to do.
func (s *store) unfinished() bool { return len(s.unproven) > 0 }

// writeAgain writes all of the batches that failed. It is the one thing that is safe when
// the state of the disk is unknown: fsync reports an error once and forgets the pages.
func (s *store) writeAgain(ctx context.Context, failed error) error {
	klog.FromContext(ctx).Error(failed, "Writing the partition table failed, writing all of it once more", "disk", s.table.id)
	again := slices.Clone(s.unproven)
	for i := range again {
		again[i] = whole(again[i].all)
	}
	err := s.attempt(again)
	if err == nil {
		err = s.readBack()
	}
	if err != nil {
		s.table = s.proven
		return fmt.Errorf("%w: the partition table could not be written: %w; at first: %w", ErrOutOfService, err, failed)
	}
	return nil
}

// attempt writes with a barrier behind each batch. Within a batch sectors may reach the
// medium in any order: the header's checksums tell when some did not.
func (s *store) attempt(batches []batch) error {
	for _, b := range batches {
		if len(b.changed) == 0 {
			continue // written ahead, behind a barrier of its own
		}
		for _, w := range b.changed {
			if _, err := s.dev.WriteAt(w.data, w.off); err != nil {
				return fmt.Errorf("writing %d bytes at %d: %w", len(w.data), w.off, err)
			}
		}
		if err := s.dev.Sync(); err != nil {
			return fmt.Errorf("syncing: %w", err)
		}
	}
	return nil
}

func (s *store) readBack() error {
	for _, b := range s.unproven {
		if len(b.changed) == 0 {
			continue // read back when it was written
		}
		if err := s.verify(b.all); err != nil {
			return err
		}
	}
	s.unproven, s.proven = nil, s.table
	return nil
}

// verify holds that the disk has what it should. All of it is read, not only what was
// written last: a sector that went elsewhere shows as well.
func (s *store) verify(w write) error {
	if len(s.scratch) < len(w.data) {
		s.scratch = make([]byte, len(w.data))
	}
	got := s.scratch[:len(w.data)]
	if _, err := s.dev.ReadAt(got, w.off); err != nil {
		return fmt.Errorf("reading back %d bytes at %d: %w", len(got), w.off, err)
	}
	if !bytes.Equal(got, w.data) {
		return fmt.Errorf("%d bytes at %d do not read back as written", len(got), w.off)
	}
	return nil
}
