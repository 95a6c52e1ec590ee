package usage

import (
	"cmp"
	"context"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/hang"
	"github.com/berthdev/berth/pkg/agent/mounts"
)

var (
	volumeCapacity   = gauge("volume_capacity_bytes", "Bytes of the disk that the volume has.", "disk", "volume", "kind", "namespace", "owner")
	volumeUsed       = gauge("volume_used_bytes", "Bytes that are in use in the volume's file system. There is none for raw block volumes.", "disk", "volume", "kind", "namespace", "owner")
	volumeAvailable  = gauge("volume_available_bytes", "Bytes that the volume's user can still write to its file system.", "disk", "volume", "kind", "namespace", "owner")
	volumeInodes     = gauge("volume_inodes", "Inodes of the volume's file system.", "disk", "volume", "kind", "namespace", "owner")
	volumeInodesUsed = gauge("volume_inodes_used", "Inodes of the volume's file system that are in use.", "disk", "volume", "kind", "namespace", "owner")
	volumeReads      = counter("volume_reads_total", "Reads from the volume's device that are done.", "disk", "volume", "kind", "namespace", "owner")
	volumeWrites     = counter("volume_writes_total", "Writes to the volume's device that are done.", "disk", "volume", "kind", "namespace", "owner")
	volumeReadBytes  = counter("volume_read_bytes_total", "Bytes read from the volume's device.", "disk", "volume", "kind", "namespace", "owner")
	volumeWritten    = counter("volume_written_bytes_total", "Bytes written to the volume's device.", "disk", "volume", "kind", "namespace", "owner")
	volumeIOTime     = counter("volume_io_time_seconds_total", "Time during which requests to the volume's device were in progress.", "disk", "volume", "kind", "namespace", "owner")
	unmeasured       = gauge("volumes_unmeasured", "Volumes that lack series of their own: beyond --volume-metrics-limit (limit), or how full they are is not known because their disk does not answer (hangs).", "reason")
)

// usageTimeout is how long a scrape waits for the file systems of a disk. Prometheus gives a scrape ten seconds.
const usageTimeout = 2 * time.Second

// Owners names the CSI volume ID of a volume, and namespace/name of its pod or claim. Both may be empty.
type Owners interface {
	Owner(v disk.Volume) (volume, owner string)
}

// VolumeCollector collects the metrics of the volumes that have a device.
//
// Invariants:
//  1. At most limit volumes have series. One that had series in the last scrape keeps them.
//  2. A scrape ends when the file systems of all disks have answered, or when usageTimeout is over.
//  3. At most one thread waits for the file systems of a disk.
type VolumeCollector struct {
	metrics.BaseStableCollector
	disks  Disks
	owners Owners
	limit  int
	// sys is /sys/class/block.
	sys fs.FS
	// usageOf reads the usage of the file system on a device, and may hang.
	usageOf func(devicePath string) (usage mounts.Usage, mounted bool)
	timeout time.Duration

	// scraping is held for a whole scrape, because of the third invariant.
	scraping sync.Mutex
	guard    hang.Guard
	// measured are the volumes that had series in the last scrape.
	measured map[volumeKey]bool
}

// volumeKey identifies a volume of the node: two disks may have a copy of one.
type volumeKey struct{ disk, partition string }

// measuredVolume is a volume that gets series.
type measuredVolume struct {
	volumeKey
	disk.Volume
	ready bool
}

// NewVolumeCollector returns the collector of the volumes on the disks, at most limit of them. sys is /sys/class/block.
func NewVolumeCollector(d Disks, o Owners, sys fs.FS, limit int) *VolumeCollector {
	return &VolumeCollector{disks: d, owners: o, sys: sys, limit: limit, usageOf: mountedUsage, timeout: usageTimeout}
}

// mountedUsage reads the usage of the file system on a device. mounted is false if it is not mounted or cannot be read.
func mountedUsage(devicePath string) (usage mounts.Usage, mounted bool) {
	number, err := mounts.Number(devicePath)
	if err != nil {
		return usage, false
	}
	table, err := mounts.Read()
	if err != nil {
		return usage, false
	}
	usage, mounted, err = table.UsageOfDevice(number)
	return usage, mounted && err == nil
}

// DescribeWithStability implements metrics.StableCollector.
func (c *VolumeCollector) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{
		volumeCapacity, volumeUsed, volumeAvailable, volumeInodes, volumeInodesUsed,
		volumeReads, volumeWrites, volumeReadBytes, volumeWritten, volumeIOTime, unmeasured,
	} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (c *VolumeCollector) CollectWithStability(ch chan<- metrics.Metric) {
	c.scraping.Lock()
	defer c.scraping.Unlock()
	volumes, left := c.choose(c.disks.Disks())
	usages, hanging := c.readUsages(volumes)
	for i := range volumes {
		v := &volumes[i]
		usage, mounted := usages[v.volumeKey]
		c.send(ch, v, usage, mounted)
	}
	sample(ch, unmeasured, metrics.GaugeValue, float64(left), "limit")
	sample(ch, unmeasured, metrics.GaugeValue, float64(hanging), "hangs")
}

// choose returns the volumes that get series, and how many get none.
func (c *VolumeCollector) choose(disks []discovery.Disk) (chosen []measuredVolume, left int) {
	for i := range disks {
		d := &disks[i]
		for _, v := range d.Snapshot.Volumes {
			if v.Phase.HasDevice() {
				chosen = append(chosen, measuredVolume{volumeKey{d.ID(), v.Partition}, v, d.Ready()})
			}
		}
	}
	if left = len(chosen) - c.limit; left > 0 {
		// Stable: the others keep their order, which is that of the disks and of the places on them.
		slices.SortStableFunc(chosen, func(a, b measuredVolume) int {
			return cmp.Compare(rank(c.measured[a.volumeKey]), rank(c.measured[b.volumeKey]))
		})
		chosen = chosen[:c.limit]
	}
	c.measured = make(map[volumeKey]bool, len(chosen))
	for i := range chosen {
		c.measured[chosen[i].volumeKey] = true
	}
	return chosen, max(0, left)
}

func rank(measured bool) int {
	if measured {
		return 0
	}
	return 1
}

// readUsages reads how full the file systems are, of all disks at the same time. hanging is the number of volumes whose
// disk has not answered in time.
func (c *VolumeCollector) readUsages(volumes []measuredVolume) (usages map[volumeKey]mounts.Usage, hanging int) {
	byDisk := map[string][]measuredVolume{}
	for i := range volumes {
		if v := &volumes[i]; v.ready && !v.Raw && v.Device != "" {
			byDisk[v.volumeKey.disk] = append(byDisk[v.volumeKey.disk], *v)
		}
	}
	usages = map[volumeKey]mounts.Usage{}
	var reading sync.WaitGroup
	var mu sync.Mutex
	for id, of := range byDisk {
		reading.Go(func() {
			found, err := hang.Call(context.Background(), &c.guard, id, c.timeout, func() (map[volumeKey]mounts.Usage, error) { return c.usagesOf(of), nil }, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				hanging += len(of)
			}
			for key, usage := range found {
				usages[key] = usage
			}
		})
	}
	reading.Wait()
	return usages, hanging
}

// usagesOf reads the usage of the volumes of one disk, one after the other.
func (c *VolumeCollector) usagesOf(volumes []measuredVolume) map[volumeKey]mounts.Usage {
	found := map[volumeKey]mounts.Usage{}
	for i := range volumes {
		if usage, mounted := c.usageOf(volumes[i].Device); mounted {
			found[volumes[i].volumeKey] = usage
		}
	}
	return found
}

// send sends the series of a volume.
func (c *VolumeCollector) send(ch chan<- metrics.Metric, v *measuredVolume, usage mounts.Usage, mounted bool) {
	id, owner := c.owners.Owner(v.Volume)
	namespace, name, _ := strings.Cut(owner, "/")
	kind := "persistent"
	if v.Ephemeral {
		kind = "ephemeral"
	}
	// Volumes whose ID is not known are distinguished by their partitions.
	labels := []string{v.volumeKey.disk, cmp.Or(id, v.Partition), kind, namespace, name}
	sample(ch, volumeCapacity, metrics.GaugeValue, float64(v.Length()), labels...)
	if mounted {
		sample(ch, volumeUsed, metrics.GaugeValue, float64(usage.Used), labels...)
		sample(ch, volumeAvailable, metrics.GaugeValue, float64(usage.Available), labels...)
		sample(ch, volumeInodes, metrics.GaugeValue, float64(usage.Inodes), labels...)
		sample(ch, volumeInodesUsed, metrics.GaugeValue, float64(usage.InodesUsed), labels...)
	}
	if v.Device == "" {
		return
	}
	io, err := readIOStat(c.sys, v.Device)
	if err != nil {
		// The device goes while the volume is released, or its disk is pulled out.
		return
	}
	sample(ch, volumeReads, metrics.CounterValue, float64(io.reads), labels...)
	sample(ch, volumeWrites, metrics.CounterValue, float64(io.writes), labels...)
	sample(ch, volumeReadBytes, metrics.CounterValue, float64(io.readBytes), labels...)
	sample(ch, volumeWritten, metrics.CounterValue, float64(io.writeBytes), labels...)
	sample(ch, volumeIOTime, metrics.CounterValue, io.busySeconds, labels...)
}
