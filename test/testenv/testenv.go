// Package testenv declares what a test needs of the machine, and skips the test with a message where the machine does
// not have it. Under CI=true nothing is skipped: anything missing is a failure, so that a suite cannot pass by testing
// nothing.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skipOrFail(t, "SKIP-NEEDS-ROOT: run this test as root: it makes loop devices and mounts")
	}
}

// NeedProgram skips the test unless every named program is in PATH.
func NeedProgram(t testing.TB, names ...string) {
	t.Helper()
	var absent []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		skipOrFail(t, "SKIP-NEEDS-PROGRAM: install what provides "+strings.Join(absent, ", "))
	}
}

// NeedFile skips the test unless the kernel has the file.
func NeedFile(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		skipOrFail(t, "SKIP-NEEDS-FILE: this kernel has no "+path)
	}
}

// SkipUnfit skips the test because this machine or its kernel cannot show what the test asserts.
func SkipUnfit(t testing.TB, format string, a ...any) {
	t.Helper()
	skipOrFail(t, "SKIP-UNFIT: "+fmt.Sprintf(format, a...))
}

func skipOrFail(t testing.TB, message string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
}
