package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// sysfsUnit is the unit of sizes in sysfs, in bytes, for every sector size.
const sysfsUnit = 512

// maxText bounds the length of a text that a device reports, in bytes.
const maxText = 128

// ignoredPrefixes are the prefixes of names of devices that are no disks.
var ignoredPrefixes = []string{"ram", "sr", "fd", "mtdblock"}

// ListDevices lists the devices below sys, which is /sys/block, that have a medium, with all their attributes in sysfs.
// dev is /dev. The volumes of our own disks are left out. A device that disappears while it is being read is left out.
// One that cannot be read in full is listed with the reason.
func ListDevices(sys fs.FS, dev string) ([]Device, error) {
	entries, err := fs.ReadDir(sys, ".")
	if err != nil {
		return nil, fmt.Errorf("cannot list block devices: %w", err)
	}
	links := linksBelow(dev)
	var devices []Device
	for _, entry := range entries {
		name := entry.Name()
		if slices.ContainsFunc(ignoredPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		// sysfs cannot have a slash in a name: cciss!c0d0 is /dev/cciss/c0d0.
		node := strings.ReplaceAll(name, "!", "/")
		d := Device{Name: name, Path: filepath.Join(dev, node), Links: links[node]}
		// Volumes are left out before more of them is read: there may be a thousand.
		if d.readMapOrLoop(sys); d.showsVolume() {
			continue
		}
		if d.Map.Name != "" {
			d.addMapperPath(filepath.Join(dev, "mapper", d.Map.Name))
		}
		d.ByID = stableLink(dev, d.Links)
		if d.read(sys) {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// FilterDevices returns the devices that match one of the patterns, or all if there is no pattern.
func FilterDevices(devices []Device, only []string) []Device {
	if len(only) == 0 {
		return devices
	}
	var matching []Device
	for _, d := range devices {
		if d.matchesPath(only) {
			matching = append(matching, d)
		}
	}
	return matching
}

// readMapOrLoop reads the properties of a device of the device mapper or a loop device.
func (d *Device) readMapOrLoop(sys fs.FS) {
	r := newAttributeReader(sys, d.Name)
	if strings.HasPrefix(d.Name, "dm-") {
		d.Map = Map{Name: r.optional("dm/name"), UUID: r.optional("dm/uuid")}
	}
	if !strings.HasPrefix(d.Name, "loop") {
		return
	}
	if file := r.optional("loop/backing_file"); file != "" {
		d.Loop = &Backing{File: file, Volume: disk.IsVolumeLoop(file), Block: backedByDevice(file)}
	}
}

// addMapperPath adds the path below /dev/mapper, which is a device node where no udev runs.
func (d *Device) addMapperPath(p string) {
	if !slices.Contains(d.Links, p) {
		d.Links = slices.Sorted(slices.Values(append(slices.Clone(d.Links), p)))
	}
}

// attributeReader reads the attributes of one device.
type attributeReader struct {
	sys    fs.FS
	device string
	// gone is set when the device was removed meanwhile.
	gone       bool
	unreadable []string
}

func newAttributeReader(sys fs.FS, device string) *attributeReader {
	return &attributeReader{sys: sys, device: device}
}

// required reads an attribute that every device has.
func (r *attributeReader) required(name string) string {
	text, err := fs.ReadFile(r.sys, path.Join(r.device, name))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		r.gone = true
	case err != nil:
		r.unreadable = append(r.unreadable, fmt.Sprintf("sysfs attribute %s cannot be read: %s", name, withoutPath(err)))
	}
	return strings.TrimSpace(string(text))
}

// number reads an attribute that every device has and that is a number.
func (r *attributeReader) number(name string) int64 {
	text := r.required(name)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil && text != "" {
		r.unreadable = append(r.unreadable, fmt.Sprintf("sysfs attribute %s is %.32q, which is not a number", name, text))
	}
	return n
}

// deciding reads an attribute that not all devices have, and that decides whether a device may be used.
func (r *attributeReader) deciding(name string) string {
	text, err := fs.ReadFile(r.sys, path.Join(r.device, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.unreadable = append(r.unreadable, fmt.Sprintf("sysfs attribute %s cannot be read: %s", name, withoutPath(err)))
	}
	return strings.TrimSpace(string(text))
}

// optional reads an attribute that some devices do not have, as one line of printable text.
func (r *attributeReader) optional(names ...string) string {
	for _, name := range names {
		text, err := fs.ReadFile(r.sys, path.Join(r.device, name))
		if err != nil {
			continue
		}
		if s := printable(string(text)); s != "" {
			return s
		}
	}
	return ""
}

// list lists a folder of the device.
func (r *attributeReader) list(folder string) []string {
	entries, err := fs.ReadDir(r.sys, path.Join(r.device, folder))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.unreadable = append(r.unreadable, fmt.Sprintf("sysfs folder %s cannot be read: %s", folder, withoutPath(err)))
		}
		return nil
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names
}

// withoutPath is the error without the path, which the message has already.
func withoutPath(err error) string {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err.Error()
	}
	return err.Error()
}

// printable makes one line of a text that a device reports, at most maxText bytes long.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	return text[:min(len(text), maxText)]
}

// read reads the device's attributes, and reports whether it is a device with a medium.
func (d *Device) read(sys fs.FS) bool {
	r := newAttributeReader(sys, d.Name)
	if r.optional("hidden") == "1" {
		return false
	}
	d.Size = r.number("size") * sysfsUnit
	if d.Size <= 0 && len(r.unreadable) == 0 {
		return false
	}
	d.SectorSize = r.number("queue/logical_block_size")
	d.Number = r.required("dev")
	d.Sequence = r.optional("diskseq")
	d.ReadOnly = r.deciding("ro") == "1"
	d.Removable = r.deciding("removable") == "1"
	d.Rotational = r.deciding("queue/rotational") == "1"
	if d.Zoned = r.deciding("queue/zoned"); d.Zoned == "none" {
		d.Zoned = ""
	}
	d.Transport = transportOf(sys, d.Name)
	d.Model = r.optional("device/model", "device/name")
	d.Vendor = r.optional("device/vendor")
	d.WWN = r.optional("wwid", "device/wwid")
	d.Serial = serialOf(r)
	d.readStack(r)
	d.Activity = activity(sys, d.Name)
	d.Unreadable = r.unreadable
	return !r.gone
}

// serialOf reads the serial number. SCSI devices have it in a page of product data.
func serialOf(r *attributeReader) string {
	if serial := r.optional("serial", "device/serial"); serial != "" {
		return serial
	}
	page, err := fs.ReadFile(r.sys, path.Join(r.device, "device/vpd_pg80"))
	const head = 4
	if err != nil || len(page) < head {
		return ""
	}
	return printable(string(page[head:min(len(page), head+int(page[2])<<8+int(page[3]))]))
}

// readStack reads what the device is made of, and what is made of it.
func (d *Device) readStack(r *attributeReader) {
	for _, holder := range r.list("holders") {
		above := newAttributeReader(r.sys, holder)
		if disk.IsVolumeMap(above.optional("dm/uuid")) {
			continue
		}
		if name := above.optional("dm/name"); name != "" {
			holder += " (" + name + ")"
		}
		d.Holders = append(d.Holders, holder)
	}
	for _, slave := range r.list("slaves") {
		d.Below = append(d.Below, wholeDevice(r.sys, path.Join(d.Name, "slaves", slave)))
	}
}

// backedByDevice reports whether a loop device shows a block device, by the path with which it was made. The kubelet
// makes such a loop device over each raw block volume in use.
func backedByDevice(file string) bool {
	return strings.HasPrefix(file, "/dev/") && !strings.HasPrefix(file, "/dev/shm/") || strings.Contains(file, "/volumeDevices/")
}

// wholeDevice is the whole device to which a link in sysfs leads: the device itself, or the one of which it is a
// partition.
func wholeDevice(sys fs.FS, link string) string {
	name := path.Base(link)
	target, err := fs.ReadLink(sys, link)
	if err != nil {
		return name
	}
	if _, err := fs.Stat(sys, path.Join(link, "partition")); err != nil {
		return name
	}
	return path.Base(path.Dir(target))
}

// firstCounter is the index of the first counter in the result of activity.
const firstCounter = 2

// activity changes when the device is read, written or resized. It is empty if sysfs does not show that. The fields are
// the size, whether it is read-only, and the counters: completed reads, writes and discards.
func activity(sys fs.FS, name string) string {
	r := newAttributeReader(sys, name)
	fields := strings.Fields(r.optional("stat"))
	if len(fields) < 5 {
		return ""
	}
	counters := []string{r.optional("size"), r.optional("ro"), fields[0], fields[4]}
	if len(fields) > 11 {
		counters = append(counters, fields[11])
	}
	return strings.Join(counters, " ")
}
