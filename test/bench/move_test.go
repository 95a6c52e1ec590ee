package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// moveSize is the size of each move. The disk is sparse, and the volume is full of data.
	moveSize  = 1 * units.GiB
	moveTurns = 3
	copyGUID  = "c0000000-0000-5000-8000-00000000000c"
)

// BenchmarkMove compares the speed of a move with that of dd on the same disk, in alternating runs. dd copies with
// direct I/O, flushes, and reads the copy back. The move also compares what it reads back, and changes the table. Each
// run begins with a target that has no blocks in the file behind the disk.
func BenchmarkMove(b *testing.B) {
	testenv.NeedRoot(b)
	testenv.NeedProgram(b, "losetup", "fallocate", "dd")
	for b.Loop() {
		w := &wiping{tb: b, ctx: b.Context()}
		w.path = testenv.Attach(b, testenv.Image(b, 2*moveSize+8*units.MiB), "512")
		b.Cleanup(w.close)
		_, err := disk.Initialize(w.ctx, w.path, disk.Owner{})
		w.must(err)
		w.disk, err = disk.Open(w.ctx, w.path, disk.Options{})
		w.must(err)
		places := []extent.Extent{extent.New(2*units.MiB, moveSize), extent.New(2*units.MiB+moveSize, moveSize)}
		v, err := w.disk.Create(w.ctx, disk.CreateOptions{Partition: wipedPartition, Extent: places[0], Raw: true})
		w.must(err)
		w.fillBytes(v.Device, moveSize)
		var berth, floor []time.Duration
		for turn := range moveTurns {
			from, to := places[turn%2], places[1-turn%2]
			begin := time.Now()
			count := fmt.Sprintf("count=%d", moveSize/units.MiB)
			testenv.Run(b, "dd", "if="+w.path, "of="+w.path, "bs=1M", count, "iflag=direct", "oflag=direct", "conv=notrunc,fsync",
				fmt.Sprintf("skip=%d", from.Start/units.MiB), fmt.Sprintf("seek=%d", to.Start/units.MiB))
			testenv.Run(b, "dd", "if="+w.path, "of=/dev/null", "bs=1M", count, "iflag=direct", fmt.Sprintf("skip=%d", to.Start/units.MiB))
			floor = append(floor, time.Since(begin))
			testenv.Run(b, "fallocate", "--punch-hole", fmt.Sprintf("--offset=%d", to.Start), fmt.Sprintf("--length=%d", moveSize), w.path)

			begin = time.Now()
			_, err := w.disk.Move(w.ctx, disk.MoveOptions{Partition: wipedPartition, Copy: copyGUID, Extent: to})
			w.must(err)
			berth = append(berth, time.Since(begin))
			_, err = w.disk.Wipe(w.ctx, copyGUID, disk.WipeOptions{})
			w.must(err)
		}
		slices.Sort(berth)
		slices.Sort(floor)
		gib := float64(moveSize) / float64(units.GiB)
		b.ReportMetric(gib/berth[moveTurns/2].Seconds(), "berth-GiB/s")
		b.ReportMetric(gib/floor[moveTurns/2].Seconds(), "dd-GiB/s")
		b.ReportMetric(ratio(floor[moveTurns/2], berth[moveTurns/2]), "berth/dd")
		b.Logf("moving %d GiB full of data, %d of each: Berth %v median, %v best; dd %v median, %v best",
			moveSize/units.GiB, moveTurns, berth[moveTurns/2], berth[0], floor[moveTurns/2], floor[0])
		w.close()
	}
}
