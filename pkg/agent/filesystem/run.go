package filesystem

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// inherited is what a program gets from the agent beside its arguments.
type inherited struct {
	files       []*os.File
	environment []string
}

// pathOf is where a program finds the n-th file that it inherits.
func pathOf(n int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+n) }

// run runs a program and returns what it said.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	return runWith(ctx, inherited{}, program, arguments...)
}

// runWith runs a program and returns what it said, in English: some messages are looked at.
func runWith(ctx context.Context, in inherited, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.ExtraFiles = in.files
	command.Env = append(append(os.Environ(), "LC_ALL=C"), in.environment...)
	command.WaitDelay = time.Second
	out, err := command.CombinedOutput()
	said := strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		return said, fmt.Errorf("%s %s: %w: %.400s", program, strings.Join(arguments, " "), err, said)
	}
	return said, nil
}
