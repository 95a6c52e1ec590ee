package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/mount-utils"
)

// outcome is the result of a mutant.
type outcome string

const (
	caught   outcome = "caught"
	survived outcome = "SURVIVED"
	broken   outcome = "BROKEN" // the mutant proves nothing: it does not compile, or its package is red without it
)

// result of one mutant.
type result struct {
	entry   Entry
	outcome outcome
	detail  string
	took    time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%-8s %5.1fs  %s: %s (%s)", r.outcome, r.took.Seconds(), r.entry.pkg(), r.entry.Name, r.detail)
}

// baselinePatience is how long all tests of an unchanged package may take.
const baselinePatience = 15 * time.Minute

// runner builds and runs the tests of packages.
type runner struct {
	root    string
	dir     string // holds overlays, test programs and their temporary files
	timeout time.Duration
	verbose bool
}

func newRunner(ctx context.Context, timeout time.Duration, verbose bool) (*runner, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module: %w", err)
	}
	dir, err := os.MkdirTemp("", "berth-mutants-")
	if err != nil {
		return nil, err
	}
	return &runner{root: filepath.Dir(strings.TrimSpace(string(out))), dir: dir, timeout: timeout, verbose: verbose}, nil
}

func (r *runner) close() { _ = os.RemoveAll(r.dir) }

// tryPackage tries the mutants of one package and passes each result to report.
func (r *runner) tryPackage(ctx context.Context, entries []Entry, report func(result)) error {
	pkg := entries[0].pkg()
	dir := filepath.Join(r.dir, strings.ReplaceAll(pkg, "/", "-"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	program := filepath.Join(dir, "package.test")
	baseline := func() error {
		if out, err := r.build(ctx, program, pkg); err != nil {
			return fmt.Errorf("the package does not compile: %w\n%s", err, out)
		}
		if out, err := r.test(ctx, program, pkg, pattern(entries), baselinePatience); err != nil {
			return fmt.Errorf("the package's tests fail without a mutant: %s\n%s", failedTests(out, err), tail(out))
		}
		return nil
	}()
	for _, e := range entries {
		start := time.Now()
		res := result{entry: e, outcome: broken}
		if baseline != nil {
			res.detail = baseline.Error()
		} else {
			res.outcome, res.detail = r.try(ctx, e, dir)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		res.took = time.Since(start)
		report(res)
	}
	return nil
}

// pattern selects the tests that the entries name, or all if one of them names none.
func pattern(entries []Entry) string {
	var patterns []string
	for _, e := range entries {
		if e.Run == "" {
			return ""
		}
		if p := "(" + e.Run + ")"; !slices.Contains(patterns, p) {
			patterns = append(patterns, p)
		}
	}
	return strings.Join(patterns, "|")
}

// try builds one mutant and runs the tests that should catch it.
func (r *runner) try(ctx context.Context, e Entry, dir string) (outcome, string) {
	mutant, err := e.mutate(r.root)
	if err != nil {
		return broken, err.Error()
	}
	source, overlay, program := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mutant.test")
	replaced, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(r.root, e.File): source}})
	if err != nil {
		return broken, err.Error()
	}
	if err := errors.Join(os.WriteFile(source, mutant, 0o644), os.WriteFile(overlay, replaced, 0o644)); err != nil {
		return broken, err.Error()
	}
	if out, err := r.build(ctx, program, e.pkg(), "-overlay="+overlay); err != nil {
		return broken, fmt.Sprintf("the mutant does not compile: %v\n%s", err, out)
	}
	timeout := r.timeout
	if e.Tests != "" {
		// Such tests wait for several programs to come to rest.
		timeout *= 2
	}
	out, err := r.test(ctx, program, e.pkg(), e.Run, timeout)
	if r.verbose {
		fmt.Printf("%s", out)
	}
	switch {
	case bytes.Contains(out, []byte("testing: warning: no tests to run")):
		return broken, fmt.Sprintf("run %q matches no test of the package", e.Run)
	case err == nil:
		return survived, "its package's tests pass without the rule"
	}
	return caught, failedTests(out, err)
}

// build compiles the tests of a package.
func (r *runner) build(ctx context.Context, program, pkg string, flags ...string) ([]byte, error) {
	arguments := append([]string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", program}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(arguments, "./"+pkg)...)
	cmd.Dir = r.root
	return cmd.CombinedOutput()
}

// test runs a test program in the directory of its package, and removes what it leaves behind.
func (r *runner) test(ctx context.Context, program, pkg, pattern string, timeout time.Duration) (out []byte, err error) {
	temporary := program + ".tmp"
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cleanUp(temporary)) }()
	// The program ends at its own timeout. This timeout is for a program that cannot.
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.count=1", "-test.failfast", "-test.timeout="+timeout.String(), "-test.run="+pattern)
	cmd.Dir = filepath.Join(r.root, pkg)
	// A skipped test catches nothing, so under CI it fails.
	cmd.Env = append(os.Environ(), "CI=true", "TMPDIR="+temporary)
	// The test program and all that it starts end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.CombinedOutput()
}

// cleanUp removes the temporary directory of a test program, and the mounts and loop devices of its files. A test that
// a mutant makes hang does not do that itself.
func cleanUp(dir string) error {
	files, err := os.ReadDir("/sys/block")
	if err != nil {
		return err
	}
	devices := map[string]bool{}
	for _, f := range files {
		backing, err := os.ReadFile(filepath.Join("/sys/block", f.Name(), "loop/backing_file"))
		if err == nil && strings.HasPrefix(string(backing), dir+"/") {
			devices["/dev/"+f.Name()] = true
		}
	}
	partition := regexp.MustCompile(`p\d+$`)
	mounts, err := mount.New("").List()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if strings.HasPrefix(m.Path, dir+"/") || devices[partition.ReplaceAllString(m.Device, "")] || devices[m.Device] {
			err = errors.Join(err, syscall.Unmount(m.Path, syscall.MNT_DETACH))
		}
	}
	for device := range devices {
		if out, failed := exec.Command("losetup", "--detach", device).CombinedOutput(); failed != nil {
			err = errors.Join(err, fmt.Errorf("detach %s: %w: %s", device, failed, out))
		}
	}
	return errors.Join(err, os.RemoveAll(dir))
}

var failure = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// failedTests names the tests that failed, or another reason of the failure.
func failedTests(out []byte, err error) string {
	var names []string
	for _, m := range failure.FindAllSubmatch(out, -1) {
		names = append(names, string(m[1]))
	}
	switch {
	case bytes.Contains(out, []byte("panic: test timed out")):
		return "by the timeout"
	case len(names) > 0:
		return strings.Join(names, ", ")
	case bytes.Contains(out, []byte("panic: ")):
		return "by a panic"
	}
	return err.Error()
}

// tail is the end of a program's output.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	return strings.Join(lines[max(len(lines)-40, 0):], "\n")
}
