package disk

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
)

// verifyTable asks the common partition tools what they think of a disk. Their exit
// codes say little: a table is good if the good text is there and no bad line is.
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
