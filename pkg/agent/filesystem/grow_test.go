package filesystem

import (
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// destroys is the oracle: it reports whether resize2fs damages an ext4 file system when it grows it to the image's
// size.
func destroys(t *testing.T, image string) bool {
	t.Helper()
	if err := exec.Command("e2fsck", "-f", "-p", image).Run(); err != nil {
		t.Fatal(err)
	}
	resized := exec.Command("resize2fs", image).Run()
	return resized != nil || exec.Command("e2fsck", "-f", "-n", image).Run() != nil
}

// TestLimit asserts that a file system grows to its limit without damage. The limit is not above the size at which
// resize2fs destroys it.
func TestLimit(t *testing.T) {
	for _, tc := range []struct {
		size, to int64
		options  []string
		may      bool
	}{
		{64 * units.MiB, 64 * units.GiB, []string{"-b4096"}, true},
		{64 * units.MiB, 64*units.GiB + 129*units.MiB, []string{"-b4096"}, false},
		{64 * units.MiB, 100 * units.GiB, []string{"-b4096"}, false},
		{64 * units.MiB, 100 * units.GiB, []string{"-b4096", "-O^resize_inode"}, true},
		{64 * units.MiB, 100 * units.GiB, []string{"-b4096", "-Ometa_bg,^resize_inode"}, true},
		{64 * units.MiB, 64 * units.GiB, []string{"-b4096", "-O^64bit"}, true},
		{64 * units.MiB, 100 * units.GiB, []string{"-b4096", "-O^64bit"}, false},
		{64 * units.MiB, 16 * units.GiB, []string{"-b4096", "-Eresize=4194304"}, true},
		{64 * units.MiB, 17 * units.GiB, []string{"-b4096", "-Eresize=4194304"}, false},
		{8 * units.MiB, 7 * units.GiB, []string{"-b1024"}, true},
		{8 * units.MiB, 9 * units.GiB, []string{"-b1024"}, false},
		{200 * units.MiB, 100 * units.GiB, []string{"-b4096"}, true},
	} {
		t.Run(fmt.Sprintf("%d MiB to %d MiB %v", tc.size/units.MiB, tc.to/units.MiB, tc.options), func(t *testing.T) {
			t.Parallel()
			image := withFile(t, tc.size, tc.options...)
			state, err := ReadSuperblock(image, diskv1alpha1.FSTypeExt4)
			if err != nil {
				t.Fatal(err)
			}
			testenv.Resize(t, image, tc.to)
			err = MayGrowUnmounted(image)
			if may := err == nil; may != tc.may {
				t.Fatalf("it may grow: %v, want %v (limit %d): %v", may, tc.may, state.Limit, err)
			}
			if !tc.may {
				if err := GrowUnmounted(t.Context(), image); !errors.Is(err, ErrTooFar) || !strings.Contains(err.Error(), "new claim") {
					t.Errorf("it is not refused: %v", err)
				}
				holdsFile(t, image)
				testenv.Resize(t, image, state.Limit)
			}
			if err := GrowUnmounted(t.Context(), image); err != nil {
				t.Fatal(err)
			}
			holdsFile(t, image)
			if state, err := ReadSuperblock(image, diskv1alpha1.FSTypeExt4); err != nil || state.Growable != 0 {
				t.Errorf("%+v: %v", state, err)
			}
		})
	}
}

// TestLimitIsNeeded asserts that resize2fs destroys file systems beyond the limit. When a newer resize2fs does not, the
// limit can be removed.
func TestLimitIsNeeded(t *testing.T) {
	image := withFile(t, 64*units.MiB, "-b4096")
	testenv.Resize(t, image, 100*units.GiB)
	if !destroys(t, image) {
		testenv.SkipUnfit(t, "this resize2fs can grow 64Mi to 100Gi unharmed")
	}
}

// TestLimitOfXFS asserts that xfs has no limit.
func TestLimitOfXFS(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.xfs")
	image := testenv.Image(t, 304*units.MiB)
	testenv.Run(t, "mkfs.xfs", "-q", "-f", image)
	if state, err := ReadSuperblock(image, diskv1alpha1.FSTypeXFS); err != nil || state.Limit != math.MaxInt64 || state.NeedsCheck {
		t.Errorf("%+v: %v", state, err)
	}
}
