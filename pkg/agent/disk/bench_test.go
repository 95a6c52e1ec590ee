package disk

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// BenchmarkCreate measures what a volume costs beside mkfs and mount: writing an entry, attaching the partition,
// writing the phase Formatted. BenchmarkFloor measures the least possible cost: one table written by hand with its two
// flushes, and BLKPG.
func BenchmarkCreate(b *testing.B) {
	l := initialized(b, 512*units.MiB, 512)
	d := l.open(b)
	ctx := b.Context()
	for b.Loop() {
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "default/web data", Extent: extentMiB(2, 100), Ephemeral: true}); err != nil {
			b.Fatal(err)
		}
		if err := d.MarkFormatted(ctx, guidA); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := wipeVolume(ctx, d, guidA); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkReserve measures the part of BenchmarkCreate during which the worker does nothing else.
func BenchmarkReserve(b *testing.B) {
	l := initialized(b, 512*units.MiB, 512)
	d := l.open(b)
	ctx := b.Context()
	for b.Loop() {
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "default/web data", Extent: extentMiB(2, 100), Ephemeral: true}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := wipeVolume(ctx, d, guidA); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkFloor measures the least that Create can cost: the writes, flushes and the ioctl, without package disk
// around them.
func BenchmarkFloor(b *testing.B) {
	l := initialized(b, 512*units.MiB, 512)
	d, err := openDevice(l.path, os.O_RDWR)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.readLayout(); err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(l.path, os.O_RDWR, 0) // buffered, as a tool would
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	table := make([]byte, d.copyBytes())
	for b.Loop() {
		table[0]++
		for _, s := range []location{d.backup(), d.primary()} {
			if _, err := f.WriteAt(table, d.copyOffset(s)); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		if err := d.blkpg(unix.BLKPG_ADD_PARTITION, 1, extentMiB(2, 100)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		// Like Wipe, punch a hole into the image's file, because that makes the next fsync slower.
		if err := punchHole(d, 2*units.MiB, 100*units.MiB); err != nil {
			b.Fatal(err)
		}
		if err := d.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := d.blkpg(unix.BLKPG_DEL_PARTITION, 1, extent.Extent{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkEncode measures the encoding of one change of a table full of volumes.
func BenchmarkEncode(b *testing.B) {
	l, err := newLayout(1<<40, 512)
	if err != nil {
		b.Fatal(err)
	}
	full := fullTable(b, l)
	s := newStore(nil, full, encodeTable(b, full))
	for b.Loop() {
		next, e, err := full.withPhase(full.entries[7].guid, Formatted)
		if err != nil {
			b.Fatal(err)
		}
		slot, err := encodeEntry(l, e)
		if err != nil {
			b.Fatal(err)
		}
		if err := next.validate(); err != nil {
			b.Fatal(err)
		}
		rendered := s.renderWith(entryChange{e.index, slot})
		l.diff(s.onDisk.backup, rendered.backup)
		l.diff(s.onDisk.primary, rendered.primary)
	}
}
