//go:build vm

package disk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// benchLoad is one way to use a device with O_DIRECT, one request at a time.
type benchLoad struct {
	name   string
	block  int64
	random bool
	write  bool
}

// run does requests for a while, and returns the bytes a second.
func (b benchLoad) run(t testing.TB, device string, length int64, r *rand.Rand) float64 {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := alignedBytes(int(b.block))
	began, done := time.Now(), int64(0)
	for off := int64(0); time.Since(began) < 700*time.Millisecond; done += b.block {
		if b.random {
			off = r.Int64N(length/b.block) * b.block
		} else if off += b.block; off+b.block > length {
			off = 0
		}
		if b.write {
			_, err = f.WriteAt(buf, off)
		} else {
			_, err = f.ReadAt(buf, off)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return float64(done) / time.Since(began).Seconds()
}

// TestBenchPieces measures the device mapper over 1, 4 and 16 pieces against the bare partition, on the disk that
// BERTH_BENCH_DISK names. The disk is blank. All devices are used in turn in each round, in another order each time.
func TestBenchPieces(t *testing.T) {
	path := os.Getenv("BERTH_BENCH_DISK")
	if path == "" {
		t.Fatal("BERTH_BENCH_DISK names no disk")
	}
	if _, err := Initialize(t.Context(), path, Owner{}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const total = 64
	start := int64(2)
	names, devices := []string{"partition"}, map[string]string{}
	for _, n := range []int64{0, 1, 4, 16} {
		o := CreateOptions{Partition: fmt.Sprintf("b0000000-0000-5000-8000-%012d", n), Raw: true, Attachment: DeviceMapper}
		name := fmt.Sprint(n, " pieces")
		if n == 0 {
			o.Attachment, name = Partition, "partition"
		} else {
			names = append(names, name)
		}
		var at []extent.Extent
		for range max(n, 1) {
			at = append(at, extentMiB(start, total/max(n, 1)))
			start += total/max(n, 1) + 1
		}
		o.Extent, o.Pieces = at[0], at[1:]
		v, err := d.Create(withoutLogs(t), o)
		if err != nil {
			t.Fatal(err)
		}
		devices[name] = v.Device
	}
	const rounds = 7
	r := rand.New(rand.NewPCG(1, 2))
	for _, load := range []benchLoad{
		{"random reads of 4 KiB", 4096, true, false}, {"random writes of 4 KiB", 4096, true, true},
		{"reads of 1 MiB in order", units.MiB, false, false}, {"writes of 1 MiB in order", units.MiB, false, true},
	} {
		ratios, speeds := map[string][]float64{}, map[string][]float64{}
		for range rounds {
			order := slices.Clone(names)
			r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			now := map[string]float64{}
			for _, name := range order {
				now[name] = load.run(t, devices[name], total*units.MiB, r)
				speeds[name] = append(speeds[name], now[name])
			}
			for _, name := range names {
				ratios[name] = append(ratios[name], now[name]/now["partition"])
			}
		}
		var line []string
		for _, name := range names {
			slices.Sort(ratios[name])
			slices.Sort(speeds[name])
			line = append(line, fmt.Sprintf("%s %.1f MiB/s = %.2f (%.2f–%.2f)", name, speeds[name][rounds/2]/float64(units.MiB), ratios[name][rounds/2], ratios[name][0], ratios[name][rounds-1]))
		}
		t.Logf("BENCH %s: %s", load.name, strings.Join(line, ", "))
	}
}
