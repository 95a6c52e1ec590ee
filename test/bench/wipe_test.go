package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// wipeSize is the size of each wipe. The disk is sparse, and the volume is full of data.
	wipeSize  = 2 * units.GiB
	wipeTurns = 3
)

// BenchmarkWipe compares the speed of a wipe with that of common programs on the same volume, in alternating runs. A
// wipe ends when the extent is free. The policy Zero is compared with fallocate --punch-hole. The policy Overwrite is
// compared with dd, which writes zeros and then reads them.
func BenchmarkWipe(b *testing.B) {
	testenv.NeedRoot(b)
	testenv.NeedProgram(b, "losetup", "fallocate", "dd", "sync")
	count := fmt.Sprintf("count=%d", wipeSize/units.MiB)
	for b.Loop() {
		w := newWiping(b)
		for _, test := range []struct {
			name   string
			policy disk.WipePolicy
			floor  func(device string)
		}{
			{"zero", disk.WipeZero, func(device string) {
				testenv.Run(b, "fallocate", "--punch-hole", "--offset=0", fmt.Sprintf("--length=%d", wipeSize), device)
				testenv.Run(b, "sync", device)
			}},
			{"overwrite", disk.WipeOverwrite, func(device string) {
				testenv.Run(b, "dd", "if=/dev/zero", "of="+device, "bs=1M", count, "oflag=direct", "conv=fsync")
				testenv.Run(b, "dd", "if="+device, "of=/dev/null", "bs=1M", count, "iflag=direct")
			}},
		} {
			var berth, floor []time.Duration
			for range wipeTurns {
				v := w.full()
				begin := time.Now()
				test.floor(v.Device)
				floor = append(floor, time.Since(begin))

				w.fill(v.Device)
				begin = time.Now()
				record, err := w.disk.Wipe(w.ctx, v.Partition, disk.WipeOptions{Policy: test.policy})
				w.must(err)
				berth = append(berth, time.Since(begin))
				if !record.Verified {
					b.Fatalf("the record: %+v", record)
				}
			}
			slices.Sort(berth)
			slices.Sort(floor)
			atBest, atMedian := ratio(floor[0], berth[0]), ratio(floor[wipeTurns/2], berth[wipeTurns/2])
			b.ReportMetric(speed(berth[wipeTurns/2]), test.name+"-berth-GiB/s")
			b.ReportMetric(speed(floor[wipeTurns/2]), test.name+"-floor-GiB/s")
			b.ReportMetric(atMedian, test.name+"-berth/floor")
			b.Logf("%s of %d GiB full of data, %d of each: Berth %v median, %v best; by hand %v median, %v best; ratio %.2f at the median, %.2f at the best",
				test.name, wipeSize/units.GiB, wipeTurns, berth[wipeTurns/2], berth[0], floor[wipeTurns/2], floor[0], atMedian, atBest)
		}
		w.close()
	}
}

func speed(d time.Duration) float64 { return float64(wipeSize) / float64(units.GiB) / d.Seconds() }

// wiping is a disk of ours with one volume.
type wiping struct {
	tb   testing.TB
	ctx  context.Context
	path string
	disk *disk.Disk
}

const wipedPartition = "a0000000-0000-5000-8000-00000000000a"

func newWiping(tb testing.TB) *wiping {
	tb.Helper()
	w := &wiping{tb: tb, ctx: tb.Context()}
	w.path = testenv.Attach(tb, testenv.Image(tb, wipeSize+8*units.MiB), "512")
	tb.Cleanup(w.close)
	_, err := disk.Initialize(w.ctx, w.path, disk.Owner{})
	w.must(err)
	w.disk, err = disk.Open(w.ctx, w.path, disk.Options{})
	w.must(err)
	return w
}

// close closes the disk.
func (w *wiping) close() {
	if w.path == "" {
		return
	}
	if w.disk != nil {
		w.disk.Close()
	}
	testenv.Detach(w.tb, w.path)
	w.path = ""
}

// full makes the volume, and fills it with bytes that are not zero.
func (w *wiping) full() disk.Volume {
	w.tb.Helper()
	v, err := w.disk.Create(w.ctx, disk.CreateOptions{Partition: wipedPartition, Extent: extent.New(2*units.MiB, wipeSize)})
	w.must(err)
	w.must(w.disk.MarkFormatted(w.ctx, v.Partition))
	w.fill(v.Device)
	return v
}

func (w *wiping) fill(device string) {
	w.tb.Helper()
	w.fillBytes(device, wipeSize)
}

func (w *wiping) fillBytes(device string, length int64) {
	w.tb.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	w.must(err)
	data := bytes.Repeat([]byte("someone!"), int(units.MiB/8))
	for range length / units.MiB {
		_, err := f.Write(data)
		w.must(err)
	}
	w.must(errors.Join(f.Sync(), f.Close()))
}

func (w *wiping) must(err error) {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
}
