package kill

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// headBytes is the part of a disk that changes, and room the volume's part of it.
	headBytes = 48 * units.MiB
)

var (
	volumeExtent = extent.New(4*units.MiB, 8*units.MiB)   // the volume
	grownExtent  = extent.New(4*units.MiB, 12*units.MiB)  // the volume after it has grown
	movedExtent  = extent.New(32*units.MiB, 12*units.MiB) // the volume after it has moved
	// neighborExtent is a volume that exists all the time, on disks that have one.
	neighborExtent = extent.New(20*units.MiB, 4*units.MiB)
)

const (
	partition    = "a0000000-0000-5000-8000-00000000000a"
	copyGUID     = "c0000000-0000-5000-8000-00000000000c"
	neighborGUID = "b0000000-0000-5000-8000-00000000000b"
)

// loopDisk is a disk: a loop device over a sparse file.
type loopDisk struct{ path, image string }

func attach(t *testing.T, image string, sector int) *loopDisk {
	t.Helper()
	l := &loopDisk{image: image, path: testenv.Attach(t, image, strconv.Itoa(sector))}
	l.removeVolumes(t)
	return l
}

func (l *loopDisk) detach(t *testing.T) {
	t.Helper()
	l.removeVolumes(t)
	file := testenv.BackingFile(t, l.path)
	testenv.Detach(t, l.path)
	testenv.AwaitDetached(t, l.path, file)
}

// volumeLoops are the loop devices over parts of the disk.
func (l *loopDisk) volumeLoops(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(backing)) == l.path {
			found = append(found, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return found
}

// removeVolumes removes all volumes from the kernel, as a reboot does. It waits for an orphaned program that still uses
// one of them.
func (l *loopDisk) removeVolumes(t *testing.T) {
	t.Helper()
	testenv.RemovePartitions(t, l.path)
	for _, path := range l.volumeLoops(t) {
		testenv.Run(t, "losetup", "--detach", path)
	}
	testenv.Eventually(t, "removing the loop devices of volumes", func() error {
		if left := l.volumeLoops(t); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
}

// usedSpace is the space that has not been zeroed: beside the volume, where it begins and grows to, and
// around where it moves to.
var usedSpace = []extent.Extent{extent.New(2*units.MiB, 4*units.MiB), extent.New(10*units.MiB, 8*units.MiB), extent.New(30*units.MiB, 8*units.MiB), extent.New(43*units.MiB, 2*units.MiB)}

// fillWithData fills a part of an image with data, as on a disk that was used before.
func fillWithData(t *testing.T, image string, parts ...extent.Extent) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range parts {
		if _, err := f.WriteAt(bytes.Repeat([]byte("old data"), int(e.Len()/8)), e.Start); err != nil {
			t.Fatal(err)
		}
	}
}

// blankImage is a disk that was used before, and whose tables were zeroed.
func blankImage(t *testing.T) string {
	t.Helper()
	image := sparse(t, headBytes)
	fillWithData(t, image, usedSpace...)
	return image
}

// fullImage is a disk of ours without free partition numbers: foreign partitions have them. It has one volume, with a
// neighbor's data.
func fullImage(t *testing.T) string {
	t.Helper()
	image := sparse(t, headBytes+disk.MetaEntry*units.MiB)
	l := attach(t, image, 512)
	if _, err := disk.Initialize(t.Context(), l.path, disk.Owner{}); err != nil {
		t.Fatal(err)
	}
	l.detach(t)
	arguments := []string{"--set-alignment=2048"}
	for i := range int64(disk.MetaEntry - 1) {
		arguments = append(arguments, fmt.Sprintf("--new=%d:%dM:+1M", i+1, (headBytes+i*units.MiB)/units.MiB))
	}
	testenv.Run(t, "sgdisk", append(arguments, image)...)
	fillWithData(t, image, usedSpace...)
	l = attach(t, image, 512)
	defer l.detach(t)
	d, err := disk.Open(t.Context(), l.path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := d.Create(t.Context(), disk.CreateOptions{Partition: neighborGUID, Extent: neighborExtent, Raw: true})
	if err != nil || v.Index != disk.MetaEntry+1 {
		t.Fatalf("the neighbor: %+v, %v", v, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	fillWithData(t, image, neighborExtent)
	return image
}

func sparse(t *testing.T, size int64) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// verify runs the common partition tools on the disk. Their exit codes say little: a table is good if the good text is
// there and no bad line is.
func (l *loopDisk) verify(t *testing.T) {
	t.Helper()
	bad := regexp.MustCompile(`Caution|Warning|Error|corrupt|Problem`)
	for good, command := range map[string][]string{
		"No problems found":    {"sgdisk", "--verify", l.path},
		"No errors detected":   {"sfdisk", "--verify", l.path},
		"Partition Table: gpt": {"parted", "--script", l.path, "unit", "s", "print"},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), good) || bad.Match(out) {
			t.Errorf("%v: %v\n%s", command, err, out)
		}
	}
}
