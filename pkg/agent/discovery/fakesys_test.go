package discovery

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// fakeDevice is the attributes of a device in a fake sysfs and a fake /dev.
type fakeDevice struct {
	name string
	// place is the device's path among the kernel's devices.
	place string
	// attributes differ from those of a 200 GiB disk without moving heads; "-" removes one and
	// "!" makes one unreadable.
	attributes map[string]string
	// links lead to the device, below /dev.
	links []string
}

// Places of devices among the kernel's, as on real machines.
const (
	pcie    = "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0"
	sata    = "pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0"
	sas     = "pci0000:80/0000:80:02.0/0000:81:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0"
	raid    = "pci0000:00/0000:00:02.0/0000:02:00.0/host0/target0:2:0/0:2:0:0"
	usb     = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0"
	iscsi   = "platform/host5/session1/target5:0:0/5:0:0:1"
	fc      = "pci0000:00/0000:00:03.0/0000:05:00.0/host6/rport-6:0-2/target6:0:0/6:0:0:1"
	virtio  = "pci0000:00/0000:00:05.0/virtio2"
	scsiVM  = "pci0000:00/0000:00:03.0/virtio0/host0/target0:0:2/0:0:2:0"
	hyperv  = "LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00/f8b3781a-1e82-4818-a1c3-63d806ec15bb/host1/target1:0:1/1:0:1:0"
	vsphere = "pci0000:00/0000:00:15.0/0000:03:00.0/host0/target0:0:1/0:0:1:0"
	mmcHost = "platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa"
	xen     = "vbd-51728"
	virtual = "virtual"
	fabrics = "virtual/nvme-fabrics/ctl/nvme5"
)

// fakeSys makes a sysfs and a /dev with the devices and returns /sys/block and /dev.
func fakeSys(t *testing.T, devices ...fakeDevice) (fs.FS, string) {
	t.Helper()
	root := t.TempDir()
	block, dev := filepath.Join(root, "sys/block"), filepath.Join(root, "dev")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(block, 0o755))
	must(os.MkdirAll(dev, 0o755))
	for n, d := range devices {
		folder := filepath.Join("devices", d.place, "block", d.name)
		all := map[string]string{
			"size": "419430400", "ro": "0", "removable": "0", "hidden": "0", "dev": "8:" + string(rune('0'+n%10)) + string(rune('0'+n/10)),
			"queue/logical_block_size": "512", "queue/rotational": "0", "queue/zoned": "none", "diskseq": "7",
			"stat": "1 0 8 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
		}
		for name, value := range d.attributes {
			all[name] = value
		}
		for name, value := range all {
			file := filepath.Join(root, "sys", folder, name)
			must(os.MkdirAll(filepath.Dir(file), 0o755))
			switch value {
			case "-":
			case "!":
				// Root can read every file, but not a folder as a file.
				must(os.MkdirAll(file, 0o755))
			case "/":
				must(os.MkdirAll(file, 0o755))
			default:
				must(os.WriteFile(file, []byte(value+"\n"), 0o644))
			}
		}
		must(os.Symlink(filepath.Join("..", folder), filepath.Join(block, d.name)))
		for _, link := range d.links {
			file := filepath.Join(dev, link)
			must(os.MkdirAll(filepath.Dir(file), 0o755))
			target, err := filepath.Rel(filepath.Dir(file), filepath.Join(dev, d.name))
			must(err)
			must(os.Symlink(target, file))
		}
	}
	return os.DirFS(block), dev
}

// readOnlySys reports one device as read-only.
type readOnlySys struct {
	fs.FS
	device string
}

func (s readOnlySys) ReadFile(name string) ([]byte, error) {
	if name == s.device+"/ro" {
		return []byte("1\n"), nil
	}
	return fs.ReadFile(s.FS, name)
}

func (s readOnlySys) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(s.FS, name) }
