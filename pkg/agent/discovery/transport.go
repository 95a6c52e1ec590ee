package discovery

import (
	"io/fs"
	"path"
	"regexp"
	"strings"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// transports maps a device's place among the kernel's devices to how it is connected. The first match counts: a USB
// bridge has a SATA disk behind it, and virtio is a PCI device.
var transports = []struct {
	place     *regexp.Regexp
	transport diskv1alpha1.Transport
}{
	{regexp.MustCompile(`/devices/(virtual|pseudo|tcm_loop)`), diskv1alpha1.TransportVirtual},
	{regexp.MustCompile(`/usb\d`), diskv1alpha1.TransportUSB},
	{regexp.MustCompile(`/session\d`), diskv1alpha1.TransportISCSI},
	{regexp.MustCompile(`/rport-\d`), diskv1alpha1.TransportFC},
	{regexp.MustCompile(`/virtio\d`), diskv1alpha1.TransportVirtio},
	{regexp.MustCompile(`/(VMBUS:|MSFT1000:|vmbus_)`), diskv1alpha1.TransportVMBus},
	{regexp.MustCompile(`/vbd-\d`), diskv1alpha1.TransportXen},
	{regexp.MustCompile(`/mmc_host/`), diskv1alpha1.TransportMMC},
	{regexp.MustCompile(`/ata\d`), diskv1alpha1.TransportSATA},
	{regexp.MustCompile(`/end_device-\d`), diskv1alpha1.TransportSAS},
	// RAID controllers and others that do not show what is behind them.
	{regexp.MustCompile(`/host\d`), diskv1alpha1.TransportUnknown},
	{regexp.MustCompile(`/pci`), diskv1alpha1.TransportPCIe},
}

var nvmeTransports = map[string]diskv1alpha1.Transport{
	"pcie": diskv1alpha1.TransportPCIe, "tcp": diskv1alpha1.TransportNVMeTCP, "rdma": diskv1alpha1.TransportNVMeRDMA,
	"fc": diskv1alpha1.TransportNVMeFC, "loop": diskv1alpha1.TransportVirtual,
}

// transportOf returns how the device is connected.
func transportOf(sys fs.FS, name string) diskv1alpha1.Transport {
	if strings.HasPrefix(name, "nvme") {
		return nvmeTransport(sys, name)
	}
	place, err := fs.ReadLink(sys, name)
	if err != nil {
		return diskv1alpha1.TransportUnknown
	}
	place = strings.TrimLeft(place, "./")
	for _, t := range transports {
		if t.place.MatchString("/" + place) {
			return t.transport
		}
	}
	return diskv1alpha1.TransportUnknown
}

// nvmeTransport reads the controller, or all controllers of a namespace with several paths. The device is local only if
// all of them are.
func nvmeTransport(sys fs.FS, name string) diskv1alpha1.Transport {
	files := []string{path.Join(name, "device/transport")}
	more, err := fs.Glob(sys, path.Join(name, "device/nvme*/transport"))
	if err == nil {
		files = append(files, more...)
	}
	found := diskv1alpha1.TransportUnknown
	for _, file := range files {
		text, err := fs.ReadFile(sys, file)
		if err != nil {
			continue
		}
		transport, known := nvmeTransports[strings.TrimSpace(string(text))]
		if !known {
			return diskv1alpha1.TransportUnknown
		}
		if found == diskv1alpha1.TransportUnknown || found == diskv1alpha1.TransportPCIe {
			found = transport
		}
	}
	return found
}
