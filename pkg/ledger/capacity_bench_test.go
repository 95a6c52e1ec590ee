package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// BenchmarkSetCapacity folds in the capacity of a node that makes a volume and removes it again. The ledger has 100,000
// other volumes. Target: 10 µs.
func BenchmarkSetCapacity(b *testing.B) {
	for _, shape := range []struct{ disks, volumes int }{{1, 10}, {2, 20}, {12, 100}} {
		b.Run(fmt.Sprintf("%d disks, %d volumes", shape.disks, shape.volumes), func(b *testing.B) {
			l := New()
			for i := range 100_000 / shape.volumes {
				l.SetCapacity(fmt.Sprint("other-", i), &Capacity{Revision: uint64(i + 1), Disks: fragmented(fmt.Sprint("other-", i), shape.disks, shape.volumes)})
			}
			before, after := fragmented("n", shape.disks, shape.volumes-1), fragmented("n", shape.disks, shape.volumes)
			// Each volume is a pod's.
			for _, d := range after {
				for _, v := range d.Allocations {
					l.SetPod("pod of "+v.Partition, "n", []Record{{v.Partition, d.ID, v.Extent}})
				}
			}
			revision := uint64(1_000_000)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				c := before
				if i%2 == 1 {
					c = after
				}
				revision++
				if !l.SetCapacity("n", &Capacity{Revision: revision, Disks: c}) {
					b.Fatal("it changed nothing")
				}
			}
		})
	}
}

// guid has the length of a GUID, and differs from others as early.
func guid(of ...any) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(of...)))
	return hex.EncodeToString(sum[:18])
}

// fragmented returns disks with the volumes distributed over them. A piece of free space follows every second volume,
// and the rest of the disk follows the last one.
func fragmented(node string, disks, volumes int) []Disk {
	out := make([]Disk, disks)
	for i := range out {
		d := Disk{ID: guid(node, "disk", i), Class: class, Ready: true, Size: 1000 * units.GiB}
		next := int64(0)
		for v := i; v < volumes; v += disks {
			d.Allocations = append(d.Allocations, Allocation{Partition: guid(node, "partition", v), Extent: at(next, 10)})
			next += 10
			if len(d.Allocations)%2 == 0 {
				d.Free = append(d.Free, at(next, int64(1+v%7)))
				next += int64(2 + v%7)
			}
		}
		d.Free = append(d.Free, extent.Extent{Start: at(next+1, 1).Start, End: d.Size})
		out[i] = d
	}
	return out
}
