package disk

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// verifyTable runs the common partition tools on a disk. Their exit codes say little: a table is good if the good text
// is there and no bad line is.
func verifyTable(t testing.TB, path string) {
	t.Helper()
	testenv.NeedProgram(t, "sgdisk", "sfdisk", "parted")
	bad := regexp.MustCompile(`Caution|Warning|Error|corrupt|Problem`)
	for _, tool := range []struct {
		good    string
		command []string
	}{
		{"No problems found", []string{"sgdisk", "--verify", path}},
		{"No errors detected", []string{"sfdisk", "--verify", path}},
		{"Partition Table: gpt", []string{"parted", "--script", path, "unit", "s", "print"}},
	} {
		out, err := exec.Command(tool.command[0], tool.command[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), tool.good) || bad.Match(out) {
			t.Errorf("%v: %v\n%s", tool.command, err, out)
		}
	}
}

// TestRecoveredByTools asserts that the common partition tools accept a sample of the disks that recovered from a power
// cut.
func TestRecoveredByTools(t *testing.T) {
	const samples = 20
	for _, l := range crashLayouts(t) {
		loop := newLoopDisk(t, l.size, int(l.sector))
		device, err := openDevice(loop.path, os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		random := rand.New(rand.NewPCG(9, uint64(l.sector)))
		verified, mebibyte := 0, make([]byte, units.MiB)
		c := powerCutTest{random: random, recovered: func(m *memDisk) {
			if verified == samples || random.IntN(12) != 0 {
				return
			}
			verified++
			for _, off := range []int64{0, l.size - units.MiB} {
				if _, err := m.ReadAt(mebibyte, off); err != nil {
					t.Fatal(err)
				}
				if _, err := device.WriteAt(mebibyte, off); err != nil {
					t.Fatal(err)
				}
			}
			// The tools read through the cache.
			if err := unix.IoctlSetInt(device.fd(), unix.BLKFLSBUF, 0); err != nil {
				t.Fatal(err)
			}
			verifyTable(t, loop.path)
		}}
		// parted warns of names that are not UTF-16.
		disk, strange := newFormattedDiskWith(t, l, []byte{'x', 0})
		for _, step := range volumeLife() {
			if verified < samples {
				c.runStep(t, disk, l, step, strange)
			}
		}
		if verified < samples {
			t.Errorf("%d tables were verified, which is less than %d", verified, samples)
		}
	}
}
