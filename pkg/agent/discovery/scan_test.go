package discovery

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// sysfs is a fake /sys/block.
func sysfs(devices map[string]map[string]string) fstest.MapFS {
	tree := fstest.MapFS{}
	for device, attributes := range devices {
		for name, value := range attributes {
			tree[device+"/"+name] = &fstest.MapFile{Data: []byte(value + "\n")}
		}
	}
	return tree
}

// attributes of a disk with 2048 sectors of 512 bytes, and what is changed of it.
func attributes(changes map[string]string) map[string]string {
	all := map[string]string{
		"size": "2048", "ro": "0", "removable": "0", "dev": "8:0",
		"queue/logical_block_size": "512", "queue/rotational": "0",
	}
	for name, value := range changes {
		all[name] = value
		if value == "" {
			delete(all, name)
		}
	}
	return all
}

func TestScan(t *testing.T) {
	dev := t.TempDir()
	byID := filepath.Join(dev, "disk", "by-id")
	if err := os.MkdirAll(byID, 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"nvme-one": "../../nvme0n1", "wwn-raid": "../../cciss/c0d0"} {
		if err := os.Symlink(target, filepath.Join(byID, link)); err != nil {
			t.Fatal(err)
		}
	}
	tree := sysfs(map[string]map[string]string{
		"nvme0n1":    attributes(map[string]string{"device/model": "Model One ", "queue/logical_block_size": "4096", "diskseq": "7"}),
		"sda":        attributes(map[string]string{"queue/rotational": "1"}),
		"cciss!c0d0": attributes(nil),
		"sdb":        attributes(map[string]string{"ro": "1"}),
		"sdc":        attributes(map[string]string{"size": "0"}),
		"sdd":        attributes(map[string]string{"removable": "1"}),
		"nvme0c0n1":  attributes(map[string]string{"hidden": "1"}),
		"ram0":       attributes(nil),
		"zram0":      attributes(nil),
		"sr0":        attributes(map[string]string{"removable": "1"}),
		"fd0":        attributes(nil),
		"loop3":      attributes(nil),
		"dm-0":       attributes(nil),
		"md127":      attributes(nil),
		"going":      attributes(map[string]string{"queue/logical_block_size": ""}),
	})
	devices, err := Scan(tree, dev, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names, explicit []string
	for _, d := range devices {
		names = append(names, d.Name)
		if d.Explicit {
			explicit = append(explicit, d.Name)
		}
	}
	if want := []string{"cciss!c0d0", "dm-0", "loop3", "md127", "nvme0n1", "sda", "sdd"}; !slices.Equal(names, want) {
		t.Errorf("devices are %v, want %v", names, want)
	}
	if want := []string{"dm-0", "loop3", "md127", "sdd"}; !slices.Equal(explicit, want) {
		t.Errorf("selected only by path are %v, want %v", explicit, want)
	}
	want := Device{
		Name: "nvme0n1", Path: filepath.Join(dev, "nvme0n1"), Links: []string{filepath.Join(byID, "nvme-one")},
		Size: 1 << 20, SectorSize: 4096, Model: "Model One", Number: "8:0", Sequence: "7",
	}
	if diff := cmp.Diff(want, devices[4]); diff != "" {
		t.Errorf("nvme0n1 (-want +got):\n%s", diff)
	}
	if d := devices[0]; d.Path != filepath.Join(dev, "cciss/c0d0") || len(d.Links) != 1 {
		t.Errorf("cciss!c0d0 is %+v", d)
	}

	only, err := Scan(tree, dev, []string{filepath.Join(dev, "sd*"), filepath.Join(byID, "nvme-*")})
	if err != nil || len(only) != 3 {
		t.Errorf("limited to sd* and nvme-*: %v, %v", only, err)
	}
	if none, err := Scan(tree, dev, []string{"["}); err != nil || len(none) != 0 {
		t.Errorf("limited to a malformed pattern: %v, %v", none, err)
	}
}

func TestAboutDisk(t *testing.T) {
	for event, want := range map[string]bool{
		"add@/devices/x/block/sda\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=disk\x00":       true,
		"add@/devices/x/block/sda1\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=partition\x00": false,
		"add@/devices/net/eth0\x00ACTION=add\x00SUBSYSTEM=net\x00":                            false,
		"bind@/devices/usb\x00ACTION=bind\x00SUBSYSTEM=usb\x00DEVTYPE=disk\x00":               false,
		"": false,
	} {
		if got := aboutDisk([]byte(event)); got != want {
			t.Errorf("aboutDisk(%q) is %v", event, got)
		}
	}
}

// Whatever a person wrote into a NodeDiskCapacity while no agent ran, what is
// remembered of it can be published again.
func TestRememberedAddsUp(t *testing.T) {
	const mib = 1 << 20
	k := diskv1alpha1.Disk{ID: "a", Device: "sda", Size: 10 * mib}
	for n := range 4 {
		a := diskv1alpha1.Allocation{Partition: string(rune('a' + n))}
		a.Start, a.Length = int64(1+n)*mib, 6*mib
		k.Allocations = append(k.Allocations, a)
	}
	d := remembered(k)
	if err := d.Snapshot.Validate(); err != nil || d.Snapshot.Overhead < 0 {
		t.Errorf("overhead %d, %v", d.Snapshot.Overhead, err)
	}
}
