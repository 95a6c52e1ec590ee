package filesystem

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// inheritance is what a program inherits from the agent beside its arguments.
type inheritance struct {
	files       []*os.File
	environment []string
}

// inheritedPath is the path at which a program finds the n-th inherited file.
func inheritedPath(n int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+n) }

// run runs a program and returns its output.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	return runWith(ctx, inheritance{}, program, arguments...)
}

// runWith runs a program and returns its output, in English: some messages are compared.
func runWith(ctx context.Context, in inheritance, program string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.ExtraFiles = in.files
	command.Env = append(append(os.Environ(), "LC_ALL=C"), in.environment...)
	command.WaitDelay = time.Second
	out, err := command.CombinedOutput()
	output := strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		return output, fmt.Errorf("%s %s: %w: %.400s", program, strings.Join(arguments, " "), err, output)
	}
	return output, nil
}
