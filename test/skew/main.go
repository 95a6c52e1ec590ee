// Skew runs the core of the integration tests, which package main lists in core.go, with the same scheduler against the
// API server and the controllers of each version of Kubernetes that Berth supports.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/berthdev/berth/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	passed, err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "skew:", err)
	}
	if err != nil || !passed {
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (bool, error) {
	all := strings.Join(cluster.KubernetesVersions(), ",")
	versions := flag.String("versions", all, "minor versions of Kubernetes, in turn")
	match := flag.String("tests", "", "run only tests whose names match this regular expression")
	timeout := flag.Duration("timeout", 30*time.Minute, "the time that the tests of one version may take")
	flag.Parse()
	if flag.NArg() > 0 {
		return false, fmt.Errorf("unknown argument %q, see -help", flag.Arg(0))
	}
	expression, err := regexp.Compile(*match)
	if err != nil {
		return false, err
	}
	tests := only(core, expression)
	if len(tests) == 0 {
		return false, fmt.Errorf("no test matches %q", *match)
	}
	if err := cluster.Build(ctx, out, "cmd/scheduler"); err != nil {
		return false, err
	}
	var results []*result
	for minor := range strings.SplitSeq(*versions, ",") {
		version, err := cluster.BuildControlPlane(ctx, out, minor)
		if err != nil {
			return false, err
		}
		r := &result{minor: minor, version: version}
		results = append(results, r)
		if err := r.try(ctx, out, tests, *timeout); err != nil {
			return false, err
		}
		if len(r.troubles(names(tests))) > 0 {
			fmt.Fprintf(out, "\n%s\n", r.failures())
		}
	}
	return summary(out, results, names(tests)), nil
}

// try runs the tests against one version. An error is returned if there is nothing to say of them.
func (r *result) try(ctx context.Context, out io.Writer, tests []coreTest, timeout time.Duration) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1",
		"-timeout="+timeout.String(), "-run="+pattern(tests), "./test/integration")
	// A test that is skipped proves nothing.
	cmd.Env = append(os.Environ(), cluster.VersionVariable+"="+r.minor, "CI=true")
	cmd.Stderr = os.Stderr
	// go test passes it on to the tests; what removes their clusters is the reaper of each.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := r.read(events, out); err != nil {
		return err
	}
	r.err = cmd.Wait()
	r.took = time.Since(start).Round(time.Second)
	return ctx.Err()
}

// summary prints a line for each version, and is true if all passed.
func summary(out io.Writer, results []*result, wanted []string) bool {
	passed := true
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "API server\tpassed\ttook\t")
	for _, r := range results {
		ok := 0
		for _, name := range wanted {
			if r.outcomes[name] == "pass" {
				ok++
			}
		}
		fmt.Fprintf(table, "%s\t%d of %d\t%s\t\n", r.version, ok, len(wanted), r.took)
	}
	table.Flush()
	for _, r := range results {
		for _, trouble := range r.troubles(wanted) {
			passed = false
			fmt.Fprintf(out, "%s  %s\n", r.version, trouble)
		}
	}
	return passed && len(results) > 0
}
