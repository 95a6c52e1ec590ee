package filesystem

import (
	"context"
	"slices"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const guid = "026235ae-86c0-5198-9b44-063e2940d190"

func newMaker(t *testing.T) *Maker {
	t.Helper()
	testenv.NeedProgram(t, "mkfs.ext4", "mkfs.xfs", "wipefs", "blkid", "dumpe2fs")
	m, err := NewMaker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestFeatures asserts that the superblock has the features of a class's set, on every machine.
func TestFeatures(t *testing.T) {
	m := newMaker(t)
	// Another configuration file would change the result.
	t.Setenv("MKE2FS_CONFIG", "/dev/null")
	for features, want := range map[diskv1alpha1.FSFeatures]string{
		"":                             "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		diskv1alpha1.FSFeatures515:     "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		diskv1alpha1.FSFeatures61:      "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg metadata_csum_seed sparse_super large_file huge_file dir_nlink extra_isize metadata_csum orphan_file",
		diskv1alpha1.FSFeaturesDefault: "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg metadata_csum_seed sparse_super large_file huge_file dir_nlink extra_isize metadata_csum orphan_file",
	} {
		path := testenv.Image(t, 64*units.MiB)
		if err := m.Make(t.Context(), diskv1alpha1.FSTypeExt4, Volume{Device: path, UUID: guid}, Settings{Features: features}); err != nil {
			t.Fatal(err)
		}
		got := field(testenv.Run(t, "dumpe2fs", "-h", path), "Filesystem features:")
		if g, w := strings.Fields(got), strings.Fields(want); !slices.Equal(sortedCopy(g), sortedCopy(w)) {
			t.Errorf("%s: features are %v, want %v", features, g, w)
		}
	}
	for _, features := range featureSets {
		path := testenv.Image(t, 304*units.MiB)
		if err := m.Make(t.Context(), diskv1alpha1.FSTypeXFS, Volume{Device: path, UUID: guid}, Settings{Features: features}); err != nil {
			t.Fatal(err)
		}
		info := testenv.Run(t, "xfs_db", "-r", "-c", "info", path)
		for _, want := range []string{"reflink=1", "bigtime=1", "inobtcount=1", "sparse=1", "rmapbt=0", "nrext64=0"} {
			if features != diskv1alpha1.FSFeaturesDefault && !strings.Contains(info, want) {
				t.Errorf("%s: it does not have %s:\n%s", features, want, info)
			}
		}
	}
}

func sortedCopy(s []string) []string { return slices.Sorted(slices.Values(s)) }

// field returns the text behind a label in a program's output.
func field(out, label string) string {
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, label); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestOptions asserts that a class's options are passed to mkfs, beside the agent's own.
func TestOptions(t *testing.T) {
	m := newMaker(t)
	ext4 := testenv.Image(t, 64*units.MiB)
	options := []string{"-b 4096", "-i 65536", "-I 512", "-m 5", "-E stride=16", "-E stripe_width=64", "-O project", "-O quota", "-J size=8"}
	if err := m.Make(t.Context(), diskv1alpha1.FSTypeExt4, Volume{Device: ext4, UUID: guid}, Settings{Options: options}); err != nil {
		t.Fatal(err)
	}
	out := testenv.Run(t, "dumpe2fs", "-h", ext4)
	for label, want := range map[string]string{
		"Block size:": "4096", "Inode count:": "1024", "Inode size:": "512", "Reserved block count:": "819", "RAID stride:": "16", "RAID stripe width:": "64",
		"Total journal size:": "8M", "Filesystem UUID:": guid,
	} {
		if got := field(out, label); got != want {
			t.Errorf("%s %s, want %s", label, got, want)
		}
	}
	for _, feature := range []string{"project", "quota", "metadata_csum"} {
		if !slices.Contains(strings.Fields(field(out, "Filesystem features:")), feature) {
			t.Errorf("it does not have %s", feature)
		}
	}
	xfs := testenv.Image(t, 2048*units.MiB)
	options = []string{"-m reflink=0", "-i size=1024", "-i maxpct=50", "-n size=8192", "-d su=64k,sw=4", "-d agcount=6", "-l size=128m"}
	if err := m.Make(t.Context(), diskv1alpha1.FSTypeXFS, Volume{Device: xfs, UUID: guid}, Settings{Options: options}); err != nil {
		t.Fatal(err)
	}
	info := testenv.Run(t, "xfs_db", "-r", "-c", "info", xfs)
	for _, want := range []string{"reflink=0", "isize=1024", "imaxpct=50", "bsize=8192", "sunit=16", "swidth=64", "agcount=6", "bigtime=1"} {
		if !strings.Contains(info, want) {
			t.Errorf("it does not have %s:\n%s", want, info)
		}
	}
}

// TestRefusedSettings asserts that settings that are impossible or not allowed are refused with the reason.
func TestRefusedSettings(t *testing.T) {
	m := newMaker(t)
	path := testenv.Image(t, 64*units.MiB)
	volume := Volume{Device: path, UUID: guid}
	err := m.Make(t.Context(), diskv1alpha1.FSTypeExt4, volume, Settings{Options: []string{"-i 65536", "-E offset=1048576"}})
	if err == nil || !strings.Contains(err.Error(), "offset=1048576") {
		t.Errorf("an option that is not in the list: %v", err)
	}
	m.unusable[featureSet{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSFeatures61}] = context.DeadlineExceeded
	err = m.Make(t.Context(), diskv1alpha1.FSTypeExt4, volume, Settings{Features: diskv1alpha1.FSFeatures61})
	if err == nil || !strings.Contains(err.Error(), "cannot make ext4 with fsFeatures lts_6.1") {
		t.Errorf("a set that the programs cannot make: %v", err)
	}
	if said := testenv.Run(t, "wipefs", "--json", "--no-act", path); strings.Contains(said, "type") {
		t.Errorf("something was made: %s", said)
	}
}

// TestCommand asserts that mkfs clears as little as the known content of a volume allows.
func TestCommand(t *testing.T) {
	m := &Maker{xfsOff: []string{"-i nrext64=0"}}
	set := Settings{Features: diskv1alpha1.FSFeatures515}
	ext4 := ext4Features[diskv1alpha1.FSFeatures515]
	for _, tc := range []struct {
		fsType    string
		prezeroed bool
		set       Settings
		want      []string
	}{
		{"ext4", false, set, []string{"mkfs.ext4", "-q", "-F", "-U", guid, "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-O", ext4}},
		{"ext4", true, set, []string{"mkfs.ext4", "-q", "-F", "-U", guid, "-m", "0", "-E", "nodiscard,assume_storage_prezeroed=1", "-O", ext4}},
		{"ext4", true, Settings{Options: []string{"-m 1", "-i 4096"}}, []string{"mkfs.ext4", "-q", "-F", "-U", guid, "-m", "1", "-E", "nodiscard,assume_storage_prezeroed=1", "-i", "4096"}},
		{"xfs", true, set, []string{"mkfs.xfs", "-q", "-f", "-K", "-m", "uuid=" + guid, "-m", "bigtime=1,crc=1,finobt=1,inobtcount=1,reflink=1,rmapbt=0", "-i", "sparse=1,nrext64=0"}},
		{"xfs", true, Settings{Features: set.Features, Options: []string{"-m reflink=0"}}, []string{
			"mkfs.xfs", "-q", "-f", "-K", "-m", "uuid=" + guid, "-m", "bigtime=1,crc=1,finobt=1,inobtcount=1,rmapbt=0,reflink=0", "-i", "sparse=1,nrext64=0",
		}},
	} {
		program, arguments := m.command(tc.fsType, Volume{UUID: guid, Prezeroed: tc.prezeroed}, tc.set)
		if got := append([]string{program}, arguments...); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.fsType, got, tc.want)
		}
	}
}
