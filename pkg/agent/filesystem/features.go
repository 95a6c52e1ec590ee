package filesystem

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// mke2fsConf is mke2fs's configuration. Without it, mke2fs uses the machine's file, or its built-in one.
//
//go:embed mke2fs.conf
var mke2fsConf []byte

// ext4Features are all features of a set. The set "default" has those of mke2fsConf. orphan_file came with Linux 5.15
// and e2fsprogs 1.47: lts_5.15 leaves it out for older e2fsprogs.
var ext4Features = map[diskv1alpha1.FSFeatures]string{
	diskv1alpha1.FSFeatures515: "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink," +
		"extra_isize,metadata_csum",
	diskv1alpha1.FSFeatures61: "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink," +
		"extra_isize,metadata_csum,metadata_csum_seed,orphan_file",
}

// xfsFeatures are options of mkfs.xfs, the same as in xfsprogs' own lts_5.15.conf and lts_6.1.conf. The set "default"
// has none.
var xfsFeatures = map[diskv1alpha1.FSFeatures][]string{
	diskv1alpha1.FSFeatures515: {"-m bigtime=1", "-m crc=1", "-m finobt=1", "-m inobtcount=1", "-m reflink=1", "-m rmapbt=0", "-i sparse=1"},
	diskv1alpha1.FSFeatures61:  {"-m bigtime=1", "-m crc=1", "-m finobt=1", "-m inobtcount=1", "-m reflink=1", "-m rmapbt=0", "-i sparse=1"},
}

// newerXFSOff disables features that no set for Linux 5.15 or 6.1 has. The options are passed if mkfs.xfs knows them. A
// mkfs.xfs that does not know them does not enable the features.
var newerXFSOff = []string{"-i nrext64=0", "-i exchange=0", "-n parent=0", "-m autofsck=0"}

// featureSets are all feature sets.
var featureSets = []diskv1alpha1.FSFeatures{diskv1alpha1.FSFeatures515, diskv1alpha1.FSFeatures61, diskv1alpha1.FSFeaturesDefault}

// featureSet is a file system with a feature set.
type featureSet struct {
	fsType   string
	features diskv1alpha1.FSFeatures
}

// scratchSize is the size of the image that is formatted to try a feature set.
const scratchSize = 512 << 20

// probe tries every feature set on an image in memory. A set that the programs of this machine cannot make is logged,
// and refused when a class requests it.
func (m *Maker) probe(ctx context.Context) error {
	scratch, err := memoryFile("scratch", nil, scratchSize)
	if err != nil {
		return err
	}
	defer scratch.Close()
	files := m.inheritedFiles(scratch)
	for _, option := range newerXFSOff {
		flag, value, _ := strings.Cut(option, " ")
		if _, err := runWith(ctx, files, "mkfs.xfs", "-N", "-f", flag, value, inheritedPath(1)); err == nil {
			m.xfsOff = append(m.xfsOff, option)
		}
	}
	logger := klog.FromContext(ctx)
	for _, features := range featureSets {
		for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
			program, arguments := m.command(fsType, Volume{UUID: "026235ae-86c0-5198-9b44-063e2940d190"}, Settings{Features: features})
			// mkfs.xfs would write the image's whole log. -N only prints what it would do.
			if fsType == diskv1alpha1.FSTypeXFS {
				arguments = append(arguments, "-N")
			}
			if _, err := runWith(ctx, files, program, append(arguments, inheritedPath(1))...); err != nil {
				m.unusable[featureSet{fsType, features}] = err
				logger.Error(err, "File systems with these features cannot be made on this node", "fsType", fsType, "fsFeatures", features)
			}
		}
	}
	ext4, errExt4 := run(ctx, "mkfs.ext4", "-V")
	xfs, errXFS := run(ctx, "mkfs.xfs", "-V")
	if err := errors.Join(errExt4, errXFS); err != nil {
		return err
	}
	logger.Info("Programs that make file systems were tried", "mkfs.ext4", ext4, "mkfs.xfs", xfs, "unusableSets", len(m.unusable))
	return nil
}

// memoryFile is a file that only this process and its children can access.
func memoryFile(name string, content []byte, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(content)
	if err == nil {
		err = f.Truncate(max(size, int64(len(content))))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot fill a file in memory: %w", err), f.Close())
	}
	return f, nil
}

// command returns the program that makes a file system, and its arguments except the device.
func (m *Maker) command(fsType string, v Volume, s Settings) (program string, arguments []string) {
	if fsType == diskv1alpha1.FSTypeXFS {
		// -f overwrites the remains of an interrupted mkfs, -K discards nothing.
		arguments = []string{"-q", "-f", "-K", "-m", "uuid=" + v.UUID}
		return "mkfs.xfs", append(arguments, mergeOptions(m.xfsOptions(s.Features), s.Options)...)
	}
	extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
	if v.Prezeroed {
		extended = "nodiscard,assume_storage_prezeroed=1"
	}
	base := []string{"-m 0", "-E " + extended}
	if features, ok := ext4Features[s.Features]; ok {
		base = append(base, "-O "+features)
	}
	return "mkfs.ext4", append([]string{"-q", "-F", "-U", v.UUID}, mergeOptions(base, s.Options)...)
}

// xfsOptions are the options of mkfs.xfs for a feature set, which also disable newer features.
func (m *Maker) xfsOptions(features diskv1alpha1.FSFeatures) []string {
	base, fixed := xfsFeatures[features]
	if !fixed {
		return nil
	}
	return slices.Concat(base, m.xfsOff)
}

// mergeOptions merges options of the base and of a class into arguments. mke2fs uses only the last -E, -O and -m, and
// mkfs.xfs refuses an option that is given twice.
func mergeOptions(base, class []string) []string {
	var flags []string
	values := map[string][]string{}
	for _, option := range slices.Concat(base, class) {
		flag, value, _ := strings.Cut(option, " ")
		if _, known := values[flag]; !known {
			flags = append(flags, flag)
		}
		for one := range strings.SplitSeq(value, ",") {
			key, _, isPair := strings.Cut(one, "=")
			values[flag] = slices.DeleteFunc(values[flag], func(before string) bool {
				// Only -O takes several words. Of any other flag without "=" the last value counts.
				return isPair && strings.HasPrefix(before, key+"=") || !isPair && flag != "-O" && !strings.Contains(before, "=") && flag != "-E"
			})
			values[flag] = append(values[flag], one)
		}
	}
	var arguments []string
	for _, flag := range flags {
		arguments = append(arguments, flag, strings.Join(values[flag], ","))
	}
	return arguments
}
