package agent

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/filesystem"
	"github.com/berthdev/berth/test/testenv"
)

// TestFileSystemsOfAClass asserts that a volume is made and mounted with its class's settings, and with the defaults
// without a class.
func TestFileSystemsOfAClass(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "mkfs.xfs", "dumpe2fs", "xfs_db", "wipefs")
	maker, err := filesystem.NewMaker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	classes := []*diskv1alpha1.DiskClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "plain"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{
			FSType: diskv1alpha1.FSTypeExt4, FSFeatures: diskv1alpha1.FSFeatures61,
			MkfsOptions: []string{"-I 512"}, MountOptions: []string{"noatime", "commit=30", "allocsize=64m", "ro"},
		}},
	}
	f := classFileSystems{maker: maker, classes: func() []*diskv1alpha1.DiskClass { return classes }}
	const guid = "026235ae-86c0-5198-9b44-063e2940d190"
	for class, want := range map[string]struct {
		inode, feature string
		options        []string
	}{
		"ssd":   {"512", "orphan_file", []string{"noatime", "commit=30"}},
		"plain": {"256", "metadata_csum", nil},
		"gone":  {"256", "metadata_csum", nil},
	} {
		image := testenv.Image(t, 64<<20)
		if err := f.Make(t.Context(), class, diskv1alpha1.FSTypeExt4, disk.Volume{Device: image, Partition: guid}); err != nil {
			t.Fatal(err)
		}
		made := strings.Fields(testenv.Run(t, "dumpe2fs", "-h", image))
		if i := slices.Index(made, "size:"); !slices.Contains(made, want.feature) || !slices.Contains(made, guid) || i < 0 {
			t.Errorf("%s: made is %v", class, made)
		}
		if !strings.Contains(strings.Join(made, " "), "Inode size: "+want.inode) {
			t.Errorf("%s: inodes are not of %s bytes", class, want.inode)
		}
		if got := f.MountOptions(class, diskv1alpha1.FSTypeExt4); !slices.Equal(got, want.options) {
			t.Errorf("%s: mounted with %v, want %v", class, got, want.options)
		}
	}
	// The class's options are those of ext4.
	image := testenv.Image(t, 304<<20)
	if err := f.Make(t.Context(), "ssd", diskv1alpha1.FSTypeXFS, disk.Volume{Device: image, Partition: guid}); err != nil {
		t.Error(err)
	}
	if got, want := f.MountOptions("ssd", diskv1alpha1.FSTypeXFS), []string{"noatime", "allocsize=64m"}; !slices.Equal(got, want) {
		t.Errorf("xfs is mounted with %v, want %v", got, want)
	}
}
