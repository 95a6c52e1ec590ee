package v1alpha1

import (
	"fmt"
	"regexp"
	"strings"
)

// The options that DiskClass.spec.mkfsOptions and mountOptions may have. The CRD has the same patterns, so that the API
// server refuses anything else. The agent checks them again before it uses them.
//
// Some options are left out because they change a volume's identity (labels, UUIDs) or its partition's extent (sizes,
// offsets). Others can lose data silently (barriers, recovery), or stop the node (errors=panic).
const (
	mkfsExt4 = `^(-b (1024|2048|4096)|-i [1-9][0-9]{3,7}|-I (256|512|1024)|-m ([0-9]|[1-4][0-9]|50)|-J size=[1-9][0-9]{0,4}` +
		`|-E (stride|stripe_width)=[1-9][0-9]{0,5}|-E packed_meta_blocks=[01]|-O (project|quota|verity|fast_commit))$`
	mkfsXFS = `^(-b size=(1024|2048|4096)|-d agcount=[1-9][0-9]{0,3}|-d su=[1-9][0-9]{0,4}k,sw=[1-9][0-9]{0,2}|-i size=(512|1024|2048)` +
		`|-i maxpct=([1-9]?[0-9]|100)|-l size=[1-9][0-9]{1,3}m|-m (reflink|rmapbt)=[01]|-n size=(4096|8192|16384|32768|65536))$`
	mountCommon = `^(noatime|relatime|strictatime|lazytime|nodiratime|nosuid|nodev|noexec|nosymfollow|(no)?discard|sync|dirsync|(usr|grp|prj)quota)$`
	mountExt4   = `^(commit=[1-9][0-9]{0,3}|data=(ordered|journal|writeback)|errors=(continue|remount-ro)|stripe=[0-9]{1,6}` +
		`|init_itable=[1-9][0-9]{0,3}|noinit_itable|(no)?delalloc|(no)?auto_da_alloc|journal_checksum)$`
	mountXFS = `^(allocsize=[1-9][0-9]{0,5}[kmg]|inode64|(no)?largeio|logbsize=(16|32|64|128|256)k|logbufs=[2-8]|swalloc|wsync)$`
)

var (
	mkfsPatterns       = map[string]*regexp.Regexp{FSTypeExt4: regexp.MustCompile(mkfsExt4), FSTypeXFS: regexp.MustCompile(mkfsXFS)}
	mountPatterns      = map[string]*regexp.Regexp{FSTypeExt4: regexp.MustCompile(mountExt4), FSTypeXFS: regexp.MustCompile(mountXFS)}
	commonMountPattern = regexp.MustCompile(mountCommon)
)

// ValidateMkfsOptions refuses options that the mkfs of a file system may not have, and an option that is given twice.
// Each is one string, such as "-i 65536".
func ValidateMkfsOptions(fsType string, options []string) error {
	pattern, known := mkfsPatterns[fsType]
	if !known {
		return ValidateFSType(fsType)
	}
	seen := map[string]string{}
	for _, o := range options {
		if !pattern.MatchString(o) {
			return fmt.Errorf("mkfsOptions: %.64q is not an option that volumes with %s can be made with: docs/operate/file-systems.md lists them", o, fsType)
		}
		key, _, _ := strings.Cut(o, "=")
		if !strings.Contains(o, "=") && !strings.HasPrefix(o, "-O") {
			key, _, _ = strings.Cut(o, " ")
		}
		if other, twice := seen[key]; twice {
			return fmt.Errorf("mkfsOptions: %.64q and %.64q exclude each other", other, o)
		}
		seen[key] = o
	}
	return nil
}

// ValidateMountOptions refuses options that volumes may not be mounted with, and an option that is given twice. It
// accepts those of either file system: see MountOptionsFor.
func ValidateMountOptions(options []string) error {
	seen := map[string]string{}
	for _, o := range options {
		if !commonMountPattern.MatchString(o) && !mountPatterns[FSTypeExt4].MatchString(o) && !mountPatterns[FSTypeXFS].MatchString(o) {
			return fmt.Errorf("mountOptions: %.64q is not an option that volumes can be mounted with: docs/operate/file-systems.md lists them", o)
		}
		key, _, _ := strings.Cut(o, "=")
		key = strings.TrimPrefix(key, "no")
		if other, twice := seen[key]; twice {
			return fmt.Errorf("mountOptions: %.64q and %.64q exclude each other", other, o)
		}
		seen[key] = o
	}
	return nil
}

// MountOptionsFor returns the mount options of a class that a file system understands.
func MountOptionsFor(fsType string, options []string) []string {
	var own []string
	for _, o := range options {
		pattern, known := mountPatterns[fsType]
		if commonMountPattern.MatchString(o) || known && pattern.MatchString(o) {
			own = append(own, o)
		}
	}
	return own
}
