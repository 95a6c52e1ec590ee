package usage

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	promtestutil "github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/component-base/metrics"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// fakeNode is the disks and owners that the collectors read.
type fakeNode struct {
	disks   []discovery.Disk
	devices []discovery.ListedDevice
	owners  map[string]string
}

func (n *fakeNode) Disks() []discovery.Disk           { return n.disks }
func (n *fakeNode) Devices() []discovery.ListedDevice { return n.devices }
func (n *fakeNode) State(d *discovery.Disk) diskv1alpha1.DiskState {
	if !d.Ready() {
		return diskv1alpha1.DiskFailed
	}
	return diskv1alpha1.DiskReady
}

func (n *fakeNode) Owner(v disk.Volume) (volume, owner string) {
	if n.owners[v.Partition] == "" {
		return "", ""
	}
	return "csi-" + v.Partition, n.owners[v.Partition]
}

// testDisk is a disk in service with volumes of 1 GiB, one behind the other, and a gap behind each.
func testDisk(name string, phases ...disk.Phase) discovery.Disk {
	d := discovery.Disk{Device: discovery.Device{Name: name, Model: "model of " + name, Transport: diskv1alpha1.TransportPCIe}, Class: "ssd", Engine: &disk.Disk{}}
	d.Snapshot = disk.Snapshot{ID: "id-" + name, Size: 100 * units.GiB, Free: extent.NewSet(extent.New(90*units.GiB, 10*units.GiB))}
	for i, phase := range phases {
		start := int64(2*i+1) * units.GiB
		v := disk.Volume{Partition: fmt.Sprintf("%s-%d", name, i), Extent: extent.New(start, units.GiB), Phase: phase, Ephemeral: i%2 == 0}
		if phase.HasDevice() {
			v.Device = fmt.Sprintf("/dev/%sp%d", name, i+1)
		}
		d.Snapshot.Volumes = append(d.Snapshot.Volumes, v)
		d.Snapshot.Free = d.Snapshot.Free.Add(extent.New(start+units.GiB, units.GiB))
	}
	return d
}

// gather is one scrape: the value of each series, by name and labels in their order.
func gather(t *testing.T, c metrics.StableCollector) map[string]float64 {
	t.Helper()
	registry := metrics.NewKubeRegistry()
	registry.CustomMustRegister(c)
	defer c.ClearState()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			key := []string{strings.TrimPrefix(family.GetName(), "berth_node_")}
			for _, l := range m.GetLabel() {
				key = append(key, l.GetName()+"="+l.GetValue())
			}
			samples[strings.Join(key, " ")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return samples
}

// want asserts the values of some series. A value below zero means that there is no such series.
func want(t *testing.T, have, want map[string]float64) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if value, ok := have[key]; ok != (want[key] >= 0) || ok && value != want[key] {
			t.Errorf("%s is %v (%v), want %v", key, value, ok, want[key])
		}
	}
}

// TestDisks asserts the metrics of disks in service, of one that is full, and of one that is out of service.
func TestDisks(t *testing.T) {
	serves, failed := testDisk("nvme0n1", disk.Formatted, disk.Wiping, disk.Moved, disk.Arriving), testDisk("nvme1n1", disk.Formatted)
	failed.Problem = "the device hangs"
	full := testDisk("nvme2n1")
	for len(full.Snapshot.Volumes) < disk.MaxVolumes {
		full.Snapshot.Volumes = append(full.Snapshot.Volumes, disk.Volume{Phase: disk.Reserved, Extent: extent.New(units.GiB, units.MiB)})
	}
	n := &fakeNode{disks: []discovery.Disk{serves, failed, full}, devices: []discovery.ListedDevice{
		{Verdict: discovery.Verdict{State: diskv1alpha1.DeviceCandidate}}, {Verdict: discovery.Verdict{State: diskv1alpha1.DeviceInUse}},
	}}
	want(t, gather(t, NewDiskCollector(n, n)), map[string]float64{
		"disk_info class=ssd device=nvme0n1 disk=id-nvme0n1 model=model of nvme0n1 serial= transport=" + string(diskv1alpha1.TransportPCIe): 1,

		"disk_size_bytes disk=id-nvme0n1":                100 * gib,
		"disk_free_bytes disk=id-nvme0n1":                14 * gib,
		"disk_free_extents disk=id-nvme0n1":              5,
		"disk_largest_free_extent_bytes disk=id-nvme0n1": 10 * gib,
		"disk_state disk=id-nvme0n1 state=Ready":         1,
		"disk_state disk=id-nvme0n1 state=Failed":        0,
		"disk_volumes disk=id-nvme0n1 phase=Formatted":   1,
		"disk_volumes disk=id-nvme0n1 phase=Wiping":      2,
		"disk_volumes disk=id-nvme0n1 phase=Copying":     1,
		"disk_volumes disk=id-nvme0n1 phase=Reserved":    0,
		"disk_volume_bytes disk=id-nvme0n1 phase=Wiping": 2 * gib,
		"disk_size_bytes disk=id-nvme1n1":                100 * gib,
		"disk_free_bytes disk=id-nvme1n1":                0,
		"disk_largest_free_extent_bytes disk=id-nvme1n1": 0,
		"disk_state disk=id-nvme1n1 state=Failed":        1,
		"disk_volumes disk=id-nvme1n1 phase=Formatted":   1,
		"disk_free_bytes disk=id-nvme2n1":                0,
		"disk_state disk=id-nvme2n1 state=Ready":         1,
		"candidate_devices":                              1,
	})
}

// gib is a GiB as the value of a sample.
const gib = float64(units.GiB)

// statOf is what /sys/class/block has of a partition.
const statOf = "  11 1 22 33 44 4 55 66 0 7700 99 0 0 0 0 0 0\n"

// newVolumes returns a collector whose file systems answer at once.
func newVolumes(n *fakeNode, limit int) *VolumeCollector {
	c := NewVolumeCollector(n, n, fstest.MapFS{"nvme0n1p1/stat": {Data: []byte(statOf)}}, limit)
	c.usageOf = func(string) (mounts.Usage, bool) {
		return mounts.Usage{Size: 10, Used: 7, Available: 2, Inodes: 100, InodesUsed: 5}, true
	}
	return c
}

// TestVolumes asserts the metrics of volumes, and that those of a volume that is gone end.
func TestVolumes(t *testing.T) {
	n := &fakeNode{disks: []discovery.Disk{testDisk("nvme0n1", disk.Formatted, disk.Formatted, disk.Wiping)}, owners: map[string]string{"nvme0n1-0": "db/pg-0"}}
	n.disks[0].Snapshot.Volumes[1].Raw = true
	c := newVolumes(n, 10)
	const first, second = " disk=id-nvme0n1 kind=ephemeral namespace=db owner=pg-0 volume=csi-nvme0n1-0", " disk=id-nvme0n1 kind=persistent namespace= owner= volume=nvme0n1-1"
	have := gather(t, c)
	want(t, have, map[string]float64{
		"volume_capacity_bytes" + first: gib, "volume_used_bytes" + first: 7, "volume_available_bytes" + first: 2, "volume_inodes" + first: 100, "volume_inodes_used" + first: 5,
		"volume_reads_total" + first: 11, "volume_read_bytes_total" + first: 22 * 512, "volume_writes_total" + first: 44, "volume_written_bytes_total" + first: 55 * 512, "volume_io_time_seconds_total" + first: 7.7,
		// A raw block volume has no file system. Nothing is known of its device here.
		"volume_capacity_bytes" + second: gib, "volume_used_bytes" + second: -1, "volume_reads_total" + second: -1,
		"volumes_unmeasured reason=limit": 0, "volumes_unmeasured reason=hangs": 0,
	})
	if len(have) != 13 {
		t.Errorf("%d series: %v", len(have), have)
	}
	n.disks[0].Snapshot.Volumes = n.disks[0].Snapshot.Volumes[1:]
	want(t, gather(t, c), map[string]float64{"volume_capacity_bytes" + first: -1, "volume_reads_total" + first: -1, "volume_capacity_bytes" + second: gib})
}

// TestVolumesLimit asserts that the number of volumes with series is bounded, and that a new volume does not end the
// series of another one.
func TestVolumesLimit(t *testing.T) {
	n := &fakeNode{disks: []discovery.Disk{testDisk("nvme0n1"), testDisk("nvme1n1", disk.Formatted, disk.Formatted)}}
	c := newVolumes(n, 2)
	measured := func() (volumes []string) {
		have := gather(t, c)
		for key := range have {
			if strings.HasPrefix(key, "volume_capacity_bytes") {
				volumes = append(volumes, key[strings.LastIndex(key, "=")+1:])
			}
		}
		slices.Sort(volumes)
		return append(volumes, fmt.Sprint(have["volumes_unmeasured reason=limit"]))
	}
	for i, step := range []struct {
		phases []disk.Phase
		want   []string
	}{
		{nil, []string{"nvme1n1-0", "nvme1n1-1", "0"}},
		{[]disk.Phase{disk.Formatted, disk.Formatted}, []string{"nvme1n1-0", "nvme1n1-1", "2"}},
	} {
		n.disks[0] = testDisk("nvme0n1", step.phases...)
		if have := measured(); !slices.Equal(have, step.want) {
			t.Errorf("step %d: %v, want %v", i, have, step.want)
		}
	}
	n.disks[1] = testDisk("nvme1n1", disk.Formatted)
	if have, want := measured(), []string{"nvme0n1-0", "nvme1n1-0", "1"}; !slices.Equal(have, want) {
		t.Errorf("after one is gone: %v, want %v", have, want)
	}
}

// TestVolumesHang asserts that a scrape ends although a file system does not answer, that its disk gets no second
// request meanwhile, and that the other disks' volumes are complete.
func TestVolumesHang(t *testing.T) {
	n := &fakeNode{disks: []discovery.Disk{testDisk("nvme0n1", disk.Formatted), testDisk("nvme1n1", disk.Formatted, disk.Formatted)}}
	c := newVolumes(n, 10)
	answer := c.usageOf
	release, asked := make(chan struct{}), atomic.Int32{}
	c.usageOf = func(device string) (mounts.Usage, bool) {
		if strings.HasPrefix(device, "/dev/nvme1n1") {
			asked.Add(1)
			<-release
		}
		return answer(device)
	}
	c.timeout = 10 * time.Millisecond
	const healthy, hangs = " disk=id-nvme0n1 kind=ephemeral namespace= owner= volume=nvme0n1-0", " disk=id-nvme1n1 kind=ephemeral namespace= owner= volume=nvme1n1-0"
	ended := make(chan map[string]float64)
	for range 3 {
		go func() { ended <- gather(t, c) }()
		want(t, testenv.Receive(t, "the end of a scrape", ended), map[string]float64{
			"volume_used_bytes" + healthy: 7, "volume_used_bytes" + hangs: -1, "volume_capacity_bytes" + hangs: gib, "volumes_unmeasured reason=hangs": 2,
		})
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the disk that hangs got %d requests, want 1", n)
	}
	close(release)
	c.timeout = time.Minute
	testenv.Eventually(t, "the disk answers again", func() error {
		if value, ok := gather(t, c)["volume_used_bytes"+hangs]; !ok || value != 7 {
			return fmt.Errorf("used %v, %v", value, ok)
		}
		return nil
	})
}

// TestOutOfService asserts that the file systems of a disk that is out of service are not read.
func TestOutOfService(t *testing.T) {
	d := testDisk("nvme0n1", disk.Formatted)
	d.Problem = "the device hangs"
	n := &fakeNode{disks: []discovery.Disk{d}}
	c := newVolumes(n, 10)
	c.usageOf = func(string) (mounts.Usage, bool) { t.Error("the file system is read"); return mounts.Usage{}, false }
	want(t, gather(t, c), map[string]float64{"volume_capacity_bytes disk=id-nvme0n1 kind=ephemeral namespace= owner= volume=nvme0n1-0": gib})
}

// TestIOStat asserts that broken counters are errors, and that the name of a device is that in sysfs.
func TestIOStat(t *testing.T) {
	sys := fstest.MapFS{
		"cciss!c0d0p1/stat": {Data: []byte(statOf)}, "short/stat": {Data: []byte("1 2 3")}, "text/stat": {Data: []byte("1 2 x 4 5 6 7 8 9 10")}, "empty/stat": {},
	}
	if s, err := readIOStat(sys, "/dev/cciss/c0d0p1"); err != nil || s.reads != 11 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, name := range []string{"short", "text", "empty", "missing"} {
		if s, err := readIOStat(fs.FS(sys), "/dev/"+name); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestLint asserts that names and units follow the rules of Prometheus.
func TestLint(t *testing.T) {
	n := &fakeNode{disks: []discovery.Disk{testDisk("nvme0n1", disk.Formatted)}}
	for _, c := range []metrics.StableCollector{NewDiskCollector(n, n), newVolumes(n, 10)} {
		registry := metrics.NewKubeRegistry()
		registry.CustomMustRegister(c)
		if problems, err := promtestutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
		if have, err := promtestutil.GatherAndCount(registry); err != nil || have < 10 {
			t.Errorf("%d series, %v", have, err)
		}
	}
}

// TestRealVolume asserts that a real file system on a real device is measured, and not when another mount hides it.
func TestRealVolume(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4")
	device := testenv.Loop(t, testenv.Image(t, 64*units.MiB), "512")
	testenv.Run(t, "mkfs.ext4", "-q", device)
	if usage, mounted := mountedUsage(device); mounted {
		t.Errorf("%+v of a device that is not mounted", usage)
	}
	target := t.TempDir()
	testenv.Run(t, "mount", device, target)
	t.Cleanup(func() { testenv.Unmount(t, target) })
	testenv.Run(t, "dd", "if=/dev/zero", "of="+filepath.Join(target, "file"), "bs=1M", "count=20", "conv=fsync", "status=none")
	usage, mounted := mountedUsage(device)
	if !mounted || usage.Used < 20*units.MiB || usage.Used+usage.Available > 64*units.MiB || usage.InodesUsed != 12 || usage.Inodes <= usage.InodesUsed {
		t.Errorf("%+v, %v", usage, mounted)
	}
	io, err := readIOStat(os.DirFS("/sys/class/block"), device)
	if err != nil || io.writeBytes < uint64(20*units.MiB) || io.writes == 0 || io.reads == 0 {
		t.Errorf("%+v, %v", io, err)
	}
	testenv.Run(t, "mount", "-t", "tmpfs", "tmpfs", target)
	t.Cleanup(func() { testenv.Unmount(t, target) })
	if usage, mounted := mountedUsage(device); mounted {
		t.Errorf("the usage of the mount above is taken for it: %+v", usage)
	}
}
