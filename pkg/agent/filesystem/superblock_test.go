package filesystem

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

func missingOn(path, fsType string) (int64, error) {
	state, err := ReadSuperblock(path, fsType)
	return state.Growable, err
}

// TestMissingExt4 asserts that nothing is missing in the file systems of mke2fs and resize2fs. Otherwise e2fsck would
// run at each mount. A file system that they would grow has bytes missing.
func TestMissingExt4(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "resize2fs", "e2fsck")
	for _, options := range [][]string{{"-b1024"}, {"-b4096"}, {"-b4096", "-O^64bit"}} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			t.Parallel()
			sizes := []int64{8, 9, 15, 16, 17, 64, 65, 72, 73, 128, 129, 130, 131, 132, 255, 256, 257, 258, 259, 260, 261, 300, 385, 386, 387, 388, 389, 390, 512, 513, 700, 1025, 1026}
			if os.Getenv("BERTH_ALL_SIZES") != "" {
				sizes = nil
				for size := int64(8); size < 700; size++ {
					sizes = append(sizes, size)
				}
			}
			for i, size := range sizes {
				path := testenv.Image(t, size*units.MiB)
				testenv.Run(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-m0"}, options...), path)...)
				if missing, err := missingOn(path, diskv1alpha1.FSTypeExt4); missing != 0 || err != nil {
					t.Errorf("of %d MiB just made %d bytes are missing: %v", size, missing, err)
				}
				larger := size + []int64{1, 2, 7, 64, 130}[i%5]
				testenv.Resize(t, path, larger*units.MiB)
				before := blocks(t, path)
				missing, err := missingOn(path, diskv1alpha1.FSTypeExt4)
				if err != nil {
					t.Error(err)
				}
				testenv.Run(t, "resize2fs", path)
				if grown := blocks(t, path) - before; (grown > 0) != (missing > 0) {
					t.Errorf("from %d to %d MiB: %d bytes were missing, it has grown by %d", size, larger, missing, grown)
				}
				if missing, err := missingOn(path, diskv1alpha1.FSTypeExt4); missing != 0 || err != nil {
					t.Errorf("from %d to %d MiB: %d bytes are missing still: %v", size, larger, missing, err)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// blocks is the size of the ext4 file system by its own superblock, in bytes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var count, size int64
	for line := range strings.Lines(testenv.Run(t, "dumpe2fs", "-h", path)) {
		_, _ = fmt.Sscanf(line, "Block count: %d", &count)
		_, _ = fmt.Sscanf(line, "Block size: %d", &size)
	}
	if count == 0 || size == 0 {
		t.Fatal("dumpe2fs does not print the size")
	}
	return count * size
}

// TestMissingXFS asserts that xfs can grow by exactly what its device has grown.
func TestMissingXFS(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.xfs")
	path := testenv.Image(t, 304*units.MiB)
	testenv.Run(t, "mkfs.xfs", "-q", "-f", "-K", path)
	if missing, err := missingOn(path, diskv1alpha1.FSTypeXFS); missing != 0 || err != nil {
		t.Errorf("%d bytes are missing: %v", missing, err)
	}
	testenv.Resize(t, path, 400*units.MiB)
	if missing, err := missingOn(path, diskv1alpha1.FSTypeXFS); missing != 96*units.MiB || err != nil {
		t.Errorf("%d bytes are missing: %v", missing, err)
	}
}

// TestNoSuperblock asserts that a device without a superblock is an error.
func TestNoSuperblock(t *testing.T) {
	for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
		if missing, err := missingOn(testenv.Image(t, units.MiB), fsType); missing != 0 || err == nil {
			t.Errorf("zeros are taken for %s: %d", fsType, missing)
		}
		if _, err := missingOn(testenv.Image(t, 1024), fsType); err == nil {
			t.Errorf("1 KiB is taken for %s", fsType)
		}
	}
}

// FuzzMissing asserts that no superblock causes a panic or a negative result.
func FuzzMissing(f *testing.F) {
	super := make([]byte, 1024)
	binary.LittleEndian.PutUint16(super[0x38:], 0xef53)
	binary.LittleEndian.PutUint32(super[0x04:], 1000)
	binary.LittleEndian.PutUint32(super[0x20:], 8192)
	f.Add(super, 10*units.MiB)
	f.Fuzz(func(t *testing.T, super []byte, size int64) {
		super = append(super, make([]byte, 1024)...)
		size = max(min(size, diskv1alpha1.MaxVolumeSize), 0)
		if state, err := ext4(super).state(size); state.Growable < 0 || state.Limit < 0 || err != nil && state != (State{}) {
			t.Errorf("ext4: %+v, %v", state, err)
		}
		if state, err := xfs(super).state(size); state.Growable < 0 || err != nil && state != (State{}) {
			t.Errorf("xfs: %+v, %v", state, err)
		}
	})
}
