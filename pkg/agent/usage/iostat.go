package usage

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// kernelSector is the unit of the kernel's counters, whatever the sectors of the device are.
const kernelSector = 512

// ioStat is what the kernel has counted for a block device since it was made.
type ioStat struct {
	reads, writes         uint64
	readBytes, writeBytes uint64
	// busySeconds is how long requests were in progress.
	busySeconds float64
}

// readIOStat reads the counters of a device. sys is /sys/class/block. The kernel has them in memory: a disk that hangs
// does not delay this.
func readIOStat(sys fs.FS, devicePath string) (ioStat, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(devicePath, "/dev/"), "/", "!")
	text, err := fs.ReadFile(sys, name+"/stat")
	if err != nil {
		return ioStat{}, fmt.Errorf("counters of %s: %w", devicePath, err)
	}
	// Documentation/block/stat.rst of the kernel: reads, reads merged, sectors read, ms reading, the same of writes,
	// requests in progress, ms with requests in progress, and more.
	const needed = 10
	fields := strings.Fields(string(text))
	if len(fields) < needed {
		return ioStat{}, fmt.Errorf("counters of %s: %d fields, want %d or more", devicePath, len(fields), needed)
	}
	numbers := make([]uint64, needed)
	for i := range numbers {
		if numbers[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return ioStat{}, fmt.Errorf("counters of %s: %w", devicePath, err)
		}
	}
	return ioStat{
		reads: numbers[0], readBytes: numbers[2] * kernelSector, writes: numbers[4], writeBytes: numbers[6] * kernelSector,
		busySeconds: float64(numbers[9]) / 1000,
	}, nil
}
