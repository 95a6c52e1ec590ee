package faults

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// verifyEvery is how many disks there are for each run of the partition tools. The tools take longer than the tests
// themselves.
const verifyEvery = 8

var toolComplaint = regexp.MustCompile(`Caution|Warning|Error|corrupt|Problem`)

// verify runs the common partition tools on the table. Their exit codes say little: the table is good if the good text
// is there and no bad line is.
func (n *node) verify(t *testing.T) {
	t.Helper()
	for _, tool := range []struct {
		good    string
		command []string
	}{
		{"No problems found", []string{"sgdisk", "--verify", n.path}},
		{"No errors detected", []string{"sfdisk", "--verify", n.path}},
		{"Partition Table: gpt", []string{"parted", "--script", n.path, "unit", "s", "print"}},
	} {
		out, err := exec.Command(tool.command[0], tool.command[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), tool.good) || toolComplaint.Match(out) {
			t.Errorf("%v: %v\n%s", tool.command, err, out)
		}
	}
}
