package discovery

import (
	"path"
	"strings"
)

// The local disks of clouds have the models "Amazon EC2 NVMe Instance Storage", "Microsoft NVMe Direct Disk",
// "Microsoft NVMe Direct Disk v2" and "nvme_card" (Google's local SSD). They need no rule: they are PCIe devices, and
// no pattern below matches them.

// networkVolumeModels are the models of volumes that a driver attaches to this node now, and perhaps to another later.
// No class takes one without a path. The patterns are in lower case. An empty vendor means any.
var networkVolumeModels = []struct{ vendor, model, what string }{
	{"", "amazon elastic block store", "Amazon EBS"},
	{"", "nvme_card-pd", "a Google persistent disk"},
	{"", "persistentdisk", "a Google persistent disk"},
	{"", "msft nvme accelerator*", "an Azure disk"},
	// Azure and vSphere disks have the same model.
	{"", "virtual disk", "an Azure or vSphere disk"},
	{"", "vmware virtual nvme disk", "a vSphere disk"},
	// The iSCSI target tgt, as in Longhorn.
	{"", "virtual-disk", "an iSCSI volume (tgt)"},
	{"lio-org", "*", "an iSCSI or FC volume (LIO)"},
	{"iet", "*", "an iSCSI volume (tgt)"},
	{"oracle", "blockvolume", "an Oracle block volume"},
	{"", "alibaba cloud elastic block storage", "an Alibaba disk"},
	{"do", "volume", "a DigitalOcean volume"},
	{"hc", "volume", "a Hetzner volume"},
	{"linode", "volume", "a Linode volume"},
	{"nutanix", "vdisk", "a Nutanix volume"},
	// The usual models of NVMe-oF targets.
	{"", "linux", "an NVMe-oF volume (nvmet)"},
	{"", "spdk bdev controller*", "an NVMe-oF volume (SPDK)"},
	{"", "mayastor nvme controller*", "a Mayastor volume"},
}

// networkVolume names the network volume that the device is, by its model. It is empty for other devices.
func networkVolume(d Device) string {
	model, vendor := strings.ToLower(d.Model), strings.ToLower(d.Vendor)
	for _, n := range networkVolumeModels {
		if n.vendor != "" && n.vendor != vendor {
			continue
		}
		if ok, err := path.Match(n.model, model); err == nil && ok {
			return n.what
		}
	}
	return ""
}
