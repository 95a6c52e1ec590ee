package discovery

import (
	"path"
	"strings"
)

// The local disks of clouds have the models "Amazon EC2 NVMe Instance Storage", "Microsoft NVMe Direct Disk",
// "Microsoft NVMe Direct Disk v2" and "nvme_card" (Google's local SSD). They need no rule: they are PCIe devices, and
// no pattern below matches them.

// volumeModel is the model of a volume that a driver attaches to this node now, and perhaps to another later. Its
// patterns are in lower case. An empty vendor means any.
type volumeModel struct{ vendor, model, what string }

// cloudVolumeModels are the models of clouds' network volumes. They are never disks: the cloud's own driver makes a
// volume for each claim, and such a volume is deleted or moved without Berth.
var cloudVolumeModels = []volumeModel{
	{"", "amazon elastic block store", "Amazon EBS"},
	{"", "nvme_card-pd", "a Google persistent disk"},
	{"", "persistentdisk", "a Google persistent disk"},
	{"", "msft nvme accelerator*", "an Azure disk"},
	// Azure's temporary disk and disks of Hyper-V have the same model.
	{"msft", "virtual disk", "an Azure disk"},
	{"oracle", "blockvolume", "an Oracle block volume"},
	{"", "alibaba cloud elastic block storage", "an Alibaba disk"},
	{"do", "volume", "a DigitalOcean volume"},
	{"hc", "volume", "a Hetzner volume"},
	{"linode", "volume", "a Linode volume"},
}

// otherVolumeModels are the models of volumes of storage systems and hypervisors. A class must name their path, because
// some are a machine's only local disks (vSphere) and others belong to another driver (Longhorn).
var otherVolumeModels = []volumeModel{
	{"", "virtual disk", "a vSphere disk"},
	{"", "vmware virtual nvme disk", "a vSphere disk"},
	// The iSCSI target tgt, as in Longhorn.
	{"", "virtual-disk", "an iSCSI volume (tgt)"},
	{"lio-org", "*", "an iSCSI or FC volume (LIO)"},
	{"iet", "*", "an iSCSI volume (tgt)"},
	{"nutanix", "vdisk", "a Nutanix volume"},
	// The usual models of NVMe-oF targets.
	{"", "linux", "an NVMe-oF volume (nvmet)"},
	{"", "spdk bdev controller*", "an NVMe-oF volume (SPDK)"},
	{"", "mayastor nvme controller*", "a Mayastor volume"},
}

// findVolumeModel names the volume that the device is by its model. It is empty for other devices.
func findVolumeModel(d Device, models []volumeModel) string {
	for _, m := range models {
		if m.matches(d) {
			return m.what
		}
	}
	return ""
}

func (m volumeModel) matches(d Device) bool {
	if m.vendor != "" && m.vendor != strings.ToLower(d.Vendor) {
		return false
	}
	ok, err := path.Match(m.model, strings.ToLower(d.Model))
	return err == nil && ok
}
