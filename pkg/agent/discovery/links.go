package discovery

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// linksBelow maps device names to the links that lead to them: those in the folders below
// dev/disk, and those in dev/mapper. Without udev there are none.
func linksBelow(dev string) map[string][]string {
	folders := []string{filepath.Join(dev, "mapper")}
	entries, _ := os.ReadDir(filepath.Join(dev, "disk"))
	for _, entry := range entries {
		folders = append(folders, filepath.Join(dev, "disk", entry.Name()))
	}
	links := map[string][]string{}
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			link := filepath.Join(folder, entry.Name())
			target, err := os.Readlink(link)
			if err != nil {
				continue
			}
			if !filepath.IsAbs(target) {
				// Such as ../../nvme0n1.
				target = filepath.Join(folder, target)
			}
			if name, err := filepath.Rel(dev, target); err == nil {
				links[name] = append(links[name], link)
			}
		}
	}
	for _, l := range links {
		slices.Sort(l)
	}
	return links
}

// byIDPreference are prefixes of names below /dev/disk/by-id, the most stable first. Names with a prefix in
// contentLinkPrefixes depend on the content of a device.
var (
	byIDPreference      = []string{"wwn-", "nvme-eui.", "nvme-uuid.", "nvme-", "ata-", "scsi-3", "scsi-", "virtio-", "mmc-", "usb-", "dm-uuid-"}
	contentLinkPrefixes = []string{"lvm-pv-uuid-", "md-", "raid-", "dm-uuid-LVM-", "dm-uuid-CRYPT-"}
	// nameablePath is the form of a path in an approval, below /dev.
	nameablePath = regexp.MustCompile(`^(disk/by-(id|path)|mapper)/[^/]{1,200}$`)
)

// stableLink returns the link that changes least: below by-id, else below mapper, else below by-path.
func stableLink(dev string, links []string) string {
	var best string
	bestRank := -1
	for _, link := range links {
		relative, err := filepath.Rel(dev, link)
		if err != nil || !nameablePath.MatchString(relative) {
			continue
		}
		name := filepath.Base(link)
		rank := -1
		switch filepath.Dir(relative) {
		case "disk/by-id":
			if !slices.ContainsFunc(contentLinkPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
				at := slices.IndexFunc(byIDPreference, func(p string) bool { return strings.HasPrefix(name, p) })
				if at < 0 {
					at = len(byIDPreference)
				}
				rank = 100 - at
			}
		case "mapper":
			rank = 2
		case "disk/by-path":
			rank = 1
		}
		if rank > bestRank || rank == bestRank && rank >= 0 && cmp.Less(link, best) {
			best, bestRank = link, rank
		}
	}
	return best
}
