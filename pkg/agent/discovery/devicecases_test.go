package discovery

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// attributes writes attributes as pairs.
func attributes(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// wantByClass is what happens to a blank device with three kinds of classes. A word with a capital is a state, anything
// else is a part of the reason why the device is not taken.
type wantByClass struct {
	// approve and automatic are for classes that select by rotational and minSize: with adoption Approve and with
	// Automatic.
	approve, automatic string
	// path is for a class with adoption Automatic that names every path.
	path string
}

const (
	taken     = "Initialize"
	candidate = "Candidate"
	unlisted  = "unlisted"
)

// alwaysTaken is always taken.
var alwaysTaken = wantByClass{candidate, taken, taken}

func onlyByPath(reason string) wantByClass { return wantByClass{reason, reason, taken} }

func neverTaken(reason string) wantByClass { return wantByClass{reason, reason, reason} }

// notAutomatic is for transports by which other drivers attach volumes.
func notAutomatic(transport string) wantByClass {
	return wantByClass{candidate, "its transport is " + transport, taken}
}

var deviceCases = []struct {
	what string
	fakeDevice
	transport diskv1alpha1.Transport
	wantByClass
}{
	// Drives of the machine.
	{"NVMe drive", fakeDevice{"nvme0n1", pcie, attributes("device/transport", "pcie", "wwid", "eui.0025385b11b2c3d4", "device/serial", "S1", "device/model", "SAMSUNG MZQL21T9HCJR"), nil}, "pcie", alwaysTaken},
	{"NVMe drive with several controllers", fakeDevice{"nvme1n1", "virtual/nvme-subsystem/nvme-subsys1", attributes("device/nvme1/transport", "pcie", "device/nvme2/transport", "pcie"), nil}, "pcie", alwaysTaken},
	{"SATA disk", fakeDevice{"sda", sata, attributes("device/model", "Samsung SSD 870", "device/wwid", "naa.5002538f4"), nil}, "sata", alwaysTaken},
	{"SAS disk", fakeDevice{"sdb", sas, attributes("device/vendor", "SEAGATE", "device/model", "XS3840SE70084"), nil}, "sas", alwaysTaken},
	{"PCIe flash with a driver of its own", fakeDevice{"rssda", "pci0000:00/0000:00:03.0/0000:04:00.0", nil, nil}, "pcie", alwaysTaken},
	{"old Smart Array", fakeDevice{"cciss!c0d0", "pci0000:00/0000:00:03.0/0000:06:00.0", nil, nil}, "pcie", alwaysTaken},
	{"disk behind a RAID controller", fakeDevice{"sdc", raid, attributes("device/vendor", "AVAGO", "device/model", "MR9361-8i"), nil}, "unknown", notAutomatic("unknown")},

	// Instance stores of clouds.
	{"EC2 instance store", fakeDevice{"nvme2n1", pcie, attributes("device/transport", "pcie", "device/model", "Amazon EC2 NVMe Instance Storage              "), nil}, "pcie", alwaysTaken},
	{"Azure direct disk", fakeDevice{"nvme3n1", pcie, attributes("device/transport", "pcie", "device/model", "Microsoft NVMe Direct Disk"), nil}, "pcie", alwaysTaken},
	{"Azure direct disk v2", fakeDevice{"nvme4n1", pcie, attributes("device/transport", "pcie", "device/model", "Microsoft NVMe Direct Disk v2"), nil}, "pcie", alwaysTaken},
	{"Google local SSD", fakeDevice{"nvme5n1", pcie, attributes("device/transport", "pcie", "device/model", "nvme_card"), nil}, "pcie", alwaysTaken},

	// Network volumes of clouds and of other drivers.
	{"EBS", fakeDevice{"nvme6n1", pcie, attributes("device/transport", "pcie", "device/model", "Amazon Elastic Block Store"), nil}, "pcie", neverTaken("Amazon EBS")},
	{"Google disk, NVMe", fakeDevice{"nvme7n1", pcie, attributes("device/transport", "pcie", "device/model", "nvme_card-pd"), nil}, "pcie", neverTaken("Google persistent disk")},
	{"Google disk, SCSI", fakeDevice{"sdd", scsiVM, attributes("device/vendor", "Google", "device/model", "PersistentDisk"), nil}, "virtio", neverTaken("Google persistent disk")},
	{"Azure disk, NVMe", fakeDevice{"nvme8n1", pcie, attributes("device/transport", "pcie", "device/model", "MSFT NVMe Accelerator v1.0"), nil}, "pcie", neverTaken("an Azure disk")},
	{"Azure disk, SCSI", fakeDevice{"sde", hyperv, attributes("device/vendor", "Msft", "device/model", "Virtual Disk"), nil}, "vmbus", neverTaken("an Azure disk")},
	{"vSphere disk", fakeDevice{"sdf", vsphere, attributes("device/vendor", "VMware", "device/model", "Virtual disk"), nil}, "unknown", onlyByPath("a vSphere disk")},
	{"Oracle volume", fakeDevice{"sdg", iscsi, attributes("device/vendor", "ORACLE", "device/model", "BlockVolume"), nil}, "iscsi", neverTaken("Oracle block volume")},
	{"Alibaba disk, NVMe", fakeDevice{"nvme15n1", pcie, attributes("device/transport", "pcie", "device/model", "Alibaba Cloud Elastic Block Storage"), nil}, "pcie", neverTaken("an Alibaba disk")},
	{"DigitalOcean volume", fakeDevice{"sdba", scsiVM, attributes("device/vendor", "DO", "device/model", "Volume"), nil}, "virtio", neverTaken("DigitalOcean volume")},
	{"Linode volume", fakeDevice{"sdbb", scsiVM, attributes("device/vendor", "Linode", "device/model", "Volume"), nil}, "virtio", neverTaken("Linode volume")},
	{"Nutanix volume", fakeDevice{"sdbc", iscsi, attributes("device/vendor", "NUTANIX", "device/model", "VDISK"), nil}, "iscsi", onlyByPath("Nutanix volume")},
	{"vSphere disk, NVMe", fakeDevice{"nvme16n1", pcie, attributes("device/transport", "pcie", "device/model", "VMware Virtual NVMe Disk"), nil}, "pcie", onlyByPath("a vSphere disk")},
	{"Mayastor", fakeDevice{"nvme17n1", fabrics, attributes("device/transport", "tcp", "device/model", "Mayastor NVMe controller"), nil}, "nvme-tcp", onlyByPath("Mayastor volume")},
	{"Hetzner volume", fakeDevice{"sdh", scsiVM, attributes("device/vendor", "HC", "device/model", "Volume"), nil}, "virtio", neverTaken("Hetzner volume")},
	{"Longhorn over iSCSI", fakeDevice{"sdi", iscsi, attributes("device/vendor", "IET", "device/model", "VIRTUAL-DISK"), nil}, "iscsi", onlyByPath("iSCSI volume (tgt)")},
	{"LIO target", fakeDevice{"sdj", iscsi, attributes("device/vendor", "LIO-ORG", "device/model", "vol1"), nil}, "iscsi", onlyByPath("LIO")},
	{"iSCSI LUN of an array", fakeDevice{"sdk", iscsi, attributes("device/vendor", "PURE", "device/model", "FlashArray"), nil}, "iscsi", notAutomatic("iscsi")},
	{"FC LUN", fakeDevice{"sdl", fc, attributes("device/vendor", "HP", "device/model", "HSV360"), nil}, "fc", notAutomatic("fc")},
	{"NVMe over TCP", fakeDevice{"nvme9n1", fabrics, attributes("device/transport", "tcp", "device/model", "Pure Storage FlashArray"), nil}, "nvme-tcp", notAutomatic("nvme-tcp")},
	{"NVMe over RDMA", fakeDevice{"nvme10n1", fabrics, attributes("device/transport", "rdma"), nil}, "nvme-rdma", notAutomatic("nvme-rdma")},
	{"NVMe over FC", fakeDevice{"nvme11n1", fabrics, attributes("device/transport", "fc"), nil}, "nvme-fc", notAutomatic("nvme-fc")},
	{"one local and one remote path", fakeDevice{"nvme12n1", "virtual/nvme-subsystem/nvme-subsys12", attributes("device/nvme1/transport", "pcie", "device/nvme2/transport", "tcp"), nil}, "nvme-tcp", notAutomatic("nvme-tcp")},
	{"nvmet target", fakeDevice{"nvme13n1", fabrics, attributes("device/transport", "tcp", "device/model", "Linux"), nil}, "nvme-tcp", onlyByPath("nvmet")},
	{"Longhorn v2, Mayastor", fakeDevice{"nvme14n1", fabrics, attributes("device/transport", "tcp", "device/model", "SPDK bdev Controller"), nil}, "nvme-tcp", onlyByPath("SPDK")},
	{"virtio disk", fakeDevice{"vda", virtio, attributes("serial", "disk-1"), nil}, "virtio", notAutomatic("virtio")},
	{"virtio SCSI disk", fakeDevice{"sdm", scsiVM, attributes("device/vendor", "QEMU", "device/model", "QEMU HARDDISK"), nil}, "virtio", notAutomatic("virtio")},
	{"Xen disk", fakeDevice{"xvdb", xen, nil, nil}, "xen", notAutomatic("xen")},
	{"Ceph", fakeDevice{"rbd0", "rbd/0", nil, nil}, "unknown", onlyByPath("Ceph volume")},
	{"nbd", fakeDevice{"nbd0", virtual, nil, nil}, "virtual", onlyByPath("network block device (nbd)")},
	{"rnbd", fakeDevice{"rnbd0", virtual, nil, nil}, "virtual", onlyByPath("network block device (rnbd)")},
	{"ATA over Ethernet", fakeDevice{"etherd!e1.1", virtual, nil, nil}, "virtual", onlyByPath("ATA over Ethernet")},
	{"DRBD", fakeDevice{"drbd1000", virtual, nil, nil}, "virtual", onlyByPath("replicated volume")},
	{"PowerFlex", fakeDevice{"scinia", virtual, nil, nil}, "virtual", onlyByPath("PowerFlex")},
	{"Portworx", fakeDevice{"pxd!pxd1", virtual, nil, nil}, "virtual", onlyByPath("Portworx")},

	// Devices made of others.
	{"zvol", fakeDevice{"zd16", virtual, nil, nil}, "virtual", onlyByPath("ZFS volume")},
	{"bcache", fakeDevice{"bcache0", virtual, nil, nil}, "virtual", onlyByPath("bcache")},
	{"zram", fakeDevice{"zram0", virtual, nil, nil}, "virtual", onlyByPath("compressed memory")},
	{"pmem", fakeDevice{"pmem0", "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0/namespace0.0", nil, nil}, "unknown", onlyByPath("persistent memory")},
	{"ublk", fakeDevice{"ublkb0", virtual, nil, nil}, "virtual", onlyByPath("user-space driver")},
	{"md array", fakeDevice{"md127", virtual, nil, nil}, "virtual", onlyByPath("RAID array")},
	{"md member", fakeDevice{"sdn", sata, attributes("holders/md127", "/"), nil}, "sata", neverTaken("part of md127")},
	{"LVM physical volume in use", fakeDevice{"sdo", sata, attributes("holders/dm-7", "/"), nil}, "sata", neverTaken("part of dm-7")},
	{"LVM volume", fakeDevice{"dm-7", virtual, attributes("dm/name", "vg-lv", "dm/uuid", "LVM-abc"), nil}, "virtual", onlyByPath("device of the device mapper")},
	{"LUKS map", fakeDevice{"dm-8", virtual, attributes("dm/name", "crypt1", "dm/uuid", "CRYPT-LUKS2-abc"), nil}, "virtual", onlyByPath("device of the device mapper")},
	{"multipath map", fakeDevice{"dm-9", virtual, attributes("dm/name", "mpatha", "dm/uuid", "mpath-360014050000000000000000000000001"), nil}, "virtual", onlyByPath("device of the device mapper")},
	{"path that its map holds", fakeDevice{"sdp", fc, attributes("holders/dm-9", "/", "device/wwid", "naa.60014050000000000000000000000001"), nil}, "fc", neverTaken("part of dm-9")},
	{"path that its map does not hold yet", fakeDevice{"sdq", fc, attributes("device/wwid", "naa.60014050000000000000000000000001"), nil}, "fc", neverTaken("path of the multipath device mpatha")},
	{"disk of ours with mapped volumes", fakeDevice{"sdr", sata, attributes("holders/dm-10", "/"), nil}, "sata", alwaysTaken},
	{"volume of ours, mapped", fakeDevice{"dm-10", virtual, attributes("dm/name", "berth-x", "dm/uuid", "BERTH-11111111-2222-4333-8444-555555555555"), nil}, "", neverTaken(unlisted)},
	{"volume of ours, a loop device", fakeDevice{"loop1", virtual, attributes("loop/backing_file", "berth/11111111-2222-4333-8444-555555555555"), nil}, "", neverTaken(unlisted)},
	{"loop device over a file", fakeDevice{"loop2", virtual, attributes("loop/backing_file", "/var/disks/a.img"), nil}, "virtual", onlyByPath("a loop device")},
	{"the kubelet's loop device over a raw volume", fakeDevice{"loop3", virtual, attributes("loop/backing_file", "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-1/dev/u"), nil}, "virtual", neverTaken("shows a block device")},
	{"loop device over a device", fakeDevice{"loop4", virtual, attributes("loop/backing_file", "/dev/sda3"), nil}, "virtual", neverTaken("shows a block device")},
	{"loop device without a file", fakeDevice{"loop5", virtual, attributes("size", "0"), nil}, "", neverTaken(unlisted)},

	// Devices that cannot serve, and those with odd values in sysfs.
	{"host-managed zoned disk", fakeDevice{"sds", sata, attributes("queue/zoned", "host-managed"), nil}, "sata", neverTaken("takes no writes in any order")},
	{"host-aware zoned disk", fakeDevice{"sdt", sata, attributes("queue/zoned", "host-aware"), nil}, "sata", onlyByPath("zoned (host-aware)")},
	{"read-only disk", fakeDevice{"sdu", sata, attributes("ro", "1"), nil}, "sata", neverTaken("read-only")},
	{"USB stick", fakeDevice{"sdv", usb, attributes("removable", "1"), nil}, "usb", onlyByPath("removable")},
	{"USB disk", fakeDevice{"sdw", usb, nil, nil}, "usb", notAutomatic("usb")},
	{"SATA disk that says it is removable", fakeDevice{"sdx", sata, attributes("removable", "1"), nil}, "sata", onlyByPath("the kernel says that it is removable")},
	{"SSD that says it is rotational", fakeDevice{"sdy", sata, attributes("queue/rotational", "1"), nil}, "sata", onlyByPath("the kernel says true; if the kernel is wrong")},
	{"small disk", fakeDevice{"sdz", sata, attributes("size", "20480"), nil}, "sata", onlyByPath("smaller than 100Gi")},
	{"eMMC", fakeDevice{"mmcblk0", mmcHost, attributes("device/name", "DG4064", "device/serial", "0x1234"), nil}, "mmc", notAutomatic("mmc")},
	{"disk with an unreadable flag", fakeDevice{"sdaa", sata, attributes("queue/zoned", "!"), nil}, "sata", neverTaken("queue/zoned cannot be read")},
	{"disk with an unreadable size", fakeDevice{"sdab", sata, attributes("size", "!"), nil}, "sata", neverTaken("size cannot be read")},
	{"disk with a size that is no number", fakeDevice{"sdac", sata, attributes("size", "many"), nil}, "sata", neverTaken("not a number")},
	{"CD drive", fakeDevice{"sr0", sata, attributes("removable", "1"), nil}, "", neverTaken(unlisted)},
	{"floppy", fakeDevice{"fd0", "platform/floppy.0", nil, nil}, "", neverTaken(unlisted)},
	{"RAM disk", fakeDevice{"ram0", virtual, nil, nil}, "", neverTaken(unlisted)},
	{"hidden path of NVMe multipath", fakeDevice{"nvme1c1n1", pcie, attributes("hidden", "1"), nil}, "", neverTaken(unlisted)},
	{"card reader without a card", fakeDevice{"sdad", usb, attributes("size", "0", "removable", "1"), nil}, "", neverTaken(unlisted)},
	{"disk that is going", fakeDevice{"sdae", sata, attributes("queue/logical_block_size", "-"), nil}, "", neverTaken(unlisted)},
}

// withPathApprove is what a class that names every path does with adoption Approve.
func (w wantByClass) withPathApprove() string {
	if w.path == taken {
		return candidate
	}
	return w.path
}

// withTransport is what the class of automatic does if it lists the device's transport.
func (w wantByClass) withTransport() string {
	if strings.HasPrefix(w.automatic, "its transport is ") {
		return taken
	}
	return w.automatic
}

// withOtherTransport is what the class of approve does if it lists another transport.
func (w wantByClass) withOtherTransport() string {
	if w.approve == candidate {
		return "no transport matches "
	}
	return w.approve
}

// TestKinds asserts for each kind of device which classes take it, and the reason of each class that does not.
func TestKinds(t *testing.T) {
	fakes := make([]fakeDevice, len(deviceCases))
	for i, k := range deviceCases {
		fakes[i] = k.fakeDevice
	}
	sys, dev := fakeSys(t, fakes...)
	devices, err := ListDevices(sys, dev)
	if err != nil {
		t.Fatal(err)
	}
	no, size := false, resource.MustParse("100Gi")
	class := func(adoption diskv1alpha1.Adoption, s diskv1alpha1.DeviceSelector) *diskv1alpha1.DiskClass {
		return &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{
			Devices: s, Adoption: adoption, NewDeviceGrace: &metav1.Duration{},
		}}
	}
	broad := diskv1alpha1.DeviceSelector{Rotational: &no, MinSize: &size}
	paths := diskv1alpha1.DeviceSelector{Paths: []string{dev + "/*", dev + "/*/*"}}
	over := func(transport diskv1alpha1.Transport) diskv1alpha1.DeviceSelector {
		s := broad
		s.Transports = []diskv1alpha1.Transport{transport}
		return s
	}
	for _, k := range deviceCases {
		t.Run(k.what, func(t *testing.T) {
			at := slices.IndexFunc(devices, func(d Device) bool { return d.Name == k.name })
			if at < 0 {
				if k.approve != unlisted {
					t.Fatal("the device is not listed")
				}
				return
			}
			d := devices[at]
			if k.approve == unlisted {
				t.Fatalf("the device is listed: %+v", d)
			}
			if d.Transport != k.transport {
				t.Errorf("the transport is %s, want %s", d.Transport, k.transport)
			}
			for _, c := range []struct {
				class *diskv1alpha1.DiskClass
				want  string
			}{
				{class(diskv1alpha1.AdoptApprove, broad), k.approve},
				{class(diskv1alpha1.AdoptAutomatic, broad), k.automatic},
				{class(diskv1alpha1.AdoptAutomatic, paths), k.path},
				{class(diskv1alpha1.AdoptApprove, paths), k.withPathApprove()},
				{class(diskv1alpha1.AdoptAutomatic, over(k.transport)), k.withTransport()},
				{class(diskv1alpha1.AdoptApprove, over("another")), k.withOtherTransport()},
			} {
				f := Facts{Device: d, Classes: []*diskv1alpha1.DiskClass{c.class}, MultipathDevice: findMultipathDevice(d, devices), NodeRegistered: true}
				v := Decide(f)
				if v.Action == ActionRead {
					f.Contents = &disk.Contents{State: disk.Blank}
					v = Decide(f)
				}
				reasons := strings.Join(v.Reasons, "; ")
				switch c.want {
				case taken:
					if v.Action != ActionInitialize || reasons != "" {
						t.Errorf("%s %+v: %+v", c.class.Spec.Adoption, c.class.Spec.Devices, v)
					}
				case candidate:
					if v.Action != ActionLeave || v.State != diskv1alpha1.DeviceCandidate || !strings.Contains(reasons, "waits for approval") {
						t.Errorf("%s %+v: %+v", c.class.Spec.Adoption, c.class.Spec.Devices, v)
					}
				default:
					if v.Action != ActionLeave || v.State == diskv1alpha1.DeviceCandidate || v.State == diskv1alpha1.DeviceInUse || !strings.Contains(reasons, c.want) {
						t.Errorf("%s %+v: %+v, want %q", c.class.Spec.Adoption, c.class.Spec.Devices, v, c.want)
					}
				}
			}
		})
	}
	if len(deviceCases) < 40 {
		t.Errorf("only %d kinds", len(deviceCases))
	}
	for _, m := range slices.Concat(cloudVolumeModels, otherVolumeModels) {
		if !slices.ContainsFunc(devices, m.matches) {
			t.Errorf("no kind has the model %q of vendor %q", m.model, m.vendor)
		}
	}
	for _, k := range virtualKinds {
		if !slices.ContainsFunc(devices, func(d Device) bool { return d.virtualKind() == k.what }) {
			t.Errorf("no kind is %s", k.what)
		}
	}
}

// TestCriteria asserts for each criterion of a class which value selects a device, and which does not.
func TestCriteria(t *testing.T) {
	d := Device{
		Name: "sda", Path: "/dev/sda", Links: []string{"/dev/disk/by-id/ata-M_S"}, Model: "Model 1", Size: 10 << 30, Rotational: true,
		Identity: Identity{Serial: "S", WWN: "naa.5"}, Transport: "sata",
	}
	yes, no := true, false
	size := func(s string) *resource.Quantity { q := resource.MustParse(s); return &q }
	with := func(exclude string) diskv1alpha1.DeviceSelector {
		return diskv1alpha1.DeviceSelector{Models: []string{"*"}, Exclude: []string{exclude}}
	}
	for name, test := range map[string]struct {
		selector diskv1alpha1.DeviceSelector
		want     string
	}{
		"model":             {diskv1alpha1.DeviceSelector{Models: []string{"X", "Model ?"}}, ""},
		"another model":     {diskv1alpha1.DeviceSelector{Models: []string{"Model 2"}}, "no model matches"},
		"path":              {diskv1alpha1.DeviceSelector{Paths: []string{"/dev/sd*"}}, ""},
		"link":              {diskv1alpha1.DeviceSelector{Paths: []string{"/dev/disk/by-id/ata-*"}}, ""},
		"another path":      {diskv1alpha1.DeviceSelector{Paths: []string{"/dev/nvme*"}}, "no path matches"},
		"serial":            {diskv1alpha1.DeviceSelector{Serials: []string{"S"}}, ""},
		"another serial":    {diskv1alpha1.DeviceSelector{Serials: []string{"T"}}, "no serial matches"},
		"wwn":               {diskv1alpha1.DeviceSelector{WWNs: []string{"naa.*"}}, ""},
		"another wwn":       {diskv1alpha1.DeviceSelector{WWNs: []string{"eui.*"}}, "no wwn matches"},
		"rotational":        {diskv1alpha1.DeviceSelector{Rotational: &yes}, ""},
		"not rotational":    {diskv1alpha1.DeviceSelector{Rotational: &no}, "rotational is false"},
		"its least size":    {diskv1alpha1.DeviceSelector{MinSize: size("10Gi")}, ""},
		"a larger one":      {diskv1alpha1.DeviceSelector{MinSize: size("10737418241")}, "smaller than"},
		"its greatest size": {diskv1alpha1.DeviceSelector{MaxSize: size("10Gi")}, ""},
		"a smaller one":     {diskv1alpha1.DeviceSelector{MaxSize: size("10737418239")}, "larger than"},
		"not excluded":      {with("/dev/sdb"), ""},
		"excluded path":     {with("/dev/sda"), "devices.exclude"},
		"excluded link":     {with("/dev/disk/by-id/*"), "devices.exclude"},
		"excluded model":    {with("Model*"), "devices.exclude"},
		"excluded serial":   {with("S"), "devices.exclude"},
		"excluded wwn":      {with("naa.5"), "devices.exclude"},
		"malformed pattern": {with("["), "devices.exclude"},
		"no criterion":      {diskv1alpha1.DeviceSelector{}, "no criterion"},
	} {
		reasons := strings.Join(findObjections(&diskv1alpha1.DiskClassSpec{Devices: test.selector}, d), "; ")
		if test.want == "" && reasons != "" || !strings.Contains(reasons, test.want) {
			t.Errorf("%s: %q, want %q", name, reasons, test.want)
		}
	}
}

// TestDeviceHasAllReasons asserts that every reason is returned, not only the first.
func TestDeviceHasAllReasons(t *testing.T) {
	yes := true
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "hdd"}, Spec: diskv1alpha1.DiskClassSpec{
		Adoption: diskv1alpha1.AdoptAutomatic,
		Devices:  diskv1alpha1.DeviceSelector{Rotational: &yes, Models: []string{"X*"}, Serials: []string{"Y"}, WWNs: []string{"Z"}, Exclude: []string{"/dev/rbd?"}},
	}}
	d := Device{Name: "rbd0", Path: "/dev/rbd0", ReadOnly: true, Removable: true, Zoned: "host-managed", Holders: []string{"dm-1"}, Model: "M",
		Transport: diskv1alpha1.TransportUnknown, Unreadable: []string{"sysfs attribute x cannot be read: y"}}
	v := Decide(Facts{Device: d, Classes: []*diskv1alpha1.DiskClass{class}, MultipathDevice: "mpatha", LiesOnOurs: "sda"})
	all := strings.Join(v.Reasons, "\n")
	for _, want := range []string{
		"cannot be read", "read-only", "host-managed", "part of dm-1", "multipath device mpatha", "lies on sda", "class hdd", "devices.exclude",
		`no model matches "M"`, "no serial matches", "no wwn matches", "rotational is true", "Ceph volume", "removable", "zoned",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no reason says %q:\n%s", want, all)
		}
	}
	if v.State != diskv1alpha1.DeviceExcluded || v.Action != ActionLeave {
		t.Errorf("%+v", v)
	}
}

// TestIdentityOfDevices asserts which identity of a device is read, and that the most stable link is used.
func TestIdentityOfDevices(t *testing.T) {
	sys, dev := fakeSys(t,
		fakeDevice{"nvme0n1", pcie, attributes("wwid", "eui.1", "device/serial", " S 1 ", "device/model", "M", "diskseq", "9", "queue/logical_block_size", "4096"),
			[]string{"disk/by-id/nvme-M_S1", "disk/by-id/nvme-eui.1", "disk/by-id/lvm-pv-uuid-x", "disk/by-path/pci-0", "disk/by-label/tenant"}},
		fakeDevice{"sda", sata, attributes("device/wwid", "t10.ATA     Disk      S2", "device/vpd_pg80", "\x00\x80\x00\x04S2  more"), []string{"disk/by-path/pci-1"}},
		fakeDevice{"dm-0", virtual, attributes("dm/name", "mpatha", "dm/uuid", "mpath-1", "slaves/sda", "/"), nil},
		fakeDevice{"sdb", sata, nil, []string{"disk/by-id/lvm-pv-uuid-y"}},
	)
	devices, err := ListDevices(sys, dev)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Identity{
		"nvme0n1": {"eui.1", "S 1", dev + "/disk/by-id/nvme-eui.1"},
		"sda":     {"t10.ATA Disk S2", "S2", dev + "/disk/by-path/pci-1"},
		"dm-0":    {ByID: dev + "/mapper/mpatha"},
		"sdb":     {},
	}
	for _, d := range devices {
		if d.Identity != want[d.Name] {
			t.Errorf("%s is %+v, want %+v", d.Name, d.Identity, want[d.Name])
		}
		if d.Name == "dm-0" && !slices.Equal(d.Below, []string{"sda"}) {
			t.Errorf("dm-0 is made of %v", d.Below)
		}
		if d.Name == "nvme0n1" && (d.SectorSize != 4096 || d.Sequence != "9" || d.Size != 200<<30 || d.Activity == "" || len(d.Links) != 5) {
			t.Errorf("%+v", d)
		}
	}
	if only := FilterDevices(devices, []string{dev + "/sd*", dev + "/mapper/*"}); len(only) != 3 {
		t.Errorf("limited to sd* and maps: %v", only)
	}
	if none := FilterDevices(devices, []string{"["}); len(none) != 0 {
		t.Errorf("limited to a malformed pattern: %v", none)
	}
}

// TestClassOfSeveral asserts that of several classes the first by name has a device, in any order of arrival. Classes
// of other nodes do not count.
func TestClassOfSeveral(t *testing.T) {
	class := func(name string, selector *metav1.LabelSelector) *diskv1alpha1.DiskClass {
		return &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{
			NodeSelector: selector, Devices: diskv1alpha1.DeviceSelector{Paths: []string{"/dev/*"}},
		}}
	}
	west := &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "west"}}
	broken := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone", Operator: "Nonsense"}}}
	d := Device{Name: "sda", Path: "/dev/sda", Size: 1}
	classes := []*diskv1alpha1.DiskClass{class("c", nil), class("b", nil), class("a", west), class("0", broken)}
	for zone, want := range map[string]string{"east": "b", "west": "a"} {
		f := Facts{Device: d, Classes: classes, NodeLabels: map[string]string{"zone": zone}}
		if v := Decide(f); v.Class != want || v.Action != ActionRead {
			t.Errorf("in the %s: %+v", zone, v)
		}
		// An approval names another class that selects the device.
		f.Approvals = []Approval{{Class: "c", Names: []string{"sda"}}}
		if v := Decide(f); v.Class != "c" {
			t.Errorf("approved for c: %+v", v)
		}
	}
	if v := Decide(Facts{Device: d}); v.Action != ActionLeave || v.State != diskv1alpha1.DeviceExcluded || v.Reasons[0] != "no DiskClass selects this node" {
		t.Errorf("without classes: %+v", v)
	}
	nothing := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if v := Decide(Facts{Device: d, Classes: []*diskv1alpha1.DiskClass{nothing}}); v.Action != ActionLeave {
		t.Errorf("a class without criteria: %+v", v)
	}
	malformed := class("m", nil)
	malformed.Spec.Devices.Exclude = []string{"a*["}
	if v := Decide(Facts{Device: d, Classes: []*diskv1alpha1.DiskClass{malformed}}); v.Action != ActionLeave {
		t.Errorf("a malformed pattern in exclude: %+v", v)
	}
}
