// Package pages tests the documentation: it runs the commands of its console blocks on a cluster like the demo's, page
// after page, and compares what they print with the page. docs/development.md has the rules for such blocks.
package pages

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/demo/tour"
	"github.com/berthdev/berth/test/testenv"
)

const (
	// patience is how long what a page shows may take to appear, and pagePatience how long a page may take.
	patience     = time.Minute
	pagePatience = 5 * time.Minute
)

// start is the page of the demo, whose commands the demo itself has.
const start = "docs/start.md"

// prepared are pages whose commands need another cluster than those of all others.
var prepared = map[string]func(t *testing.T, c *cluster.Cluster, repository string){
	"docs/install.md":    withoutStorageClasses,
	"docs/use/claims.md": withoutStorageClasses,
	"docs/use/gangs.md":  coschedule,
}

// TestPages runs the commands of all pages. Each page of docs/use has some.
func TestPages(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "bash", "containerd", "runc", "blkid", "mkfs.ext4", "mkfs.xfs")
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	options := tour.Options()
	options.Name, options.Log = "pages", os.Stderr
	c, err := cluster.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run(filepath.Base(start), func(t *testing.T) {
		t.Chdir(repository)
		testTour(t, c, start)
	})
	s, err := newStage(t.Context(), c, repository)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pagesOf(t, repository) {
		steps, err := readPage(filepath.Join(repository, path))
		if err != nil {
			t.Fatal(err)
		}
		if len(steps) == 0 {
			if filepath.Dir(path) == "docs/use" {
				t.Errorf("%s has no console block", path)
			}
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			if prepare := prepared[path]; prepare != nil {
				prepare(t, c, repository)
			}
			s.play(t, steps)
		})
	}
}

// withoutStorageClasses has the page make its own.
func withoutStorageClasses(t *testing.T, c *cluster.Cluster, _ string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), "delete", "storageclasses", "--all"); err != nil {
		t.Fatal(err)
	}
}

// coschedule runs, instead of the scheduler, one that also has Coscheduling, until the test ends.
func coschedule(t *testing.T, c *cluster.Cluster, repository string) {
	t.Helper()
	if err := c.Apply(t.Context(), "test/integration/testdata/podgroups.yaml"); err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config-beside.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	text := string(shipped)
	for old, now := range map[string]string{
		"        weight: 10\n": "        weight: 10\n      - name: Coscheduling\n",
		"    postFilter:\n":    "    queueSort:\n      enabled: [{name: Coscheduling}]\n      disabled: [{name: \"*\"}]\n    postFilter:\n",
		"  pluginConfig:\n":    "  pluginConfig:\n  - name: Coscheduling\n    args: {permitWaitingTimeSeconds: 60}\n",
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("%q is not once in the scheduler's configuration", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const name = "scheduler-of-gangs"
	if err := errors.Join(c.StopScheduler(), c.StartSchedulerConfigured(t.Context(), name, config)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.StopSchedulerNamed(name), c.StartScheduler(context.Background())); err != nil {
			t.Error(err)
		}
	})
}

// pagesOf are the pages with commands, from the root of the repository.
func pagesOf(t *testing.T, repository string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/use/*.md", "docs/operate/*.md"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no page is %s: %v", pattern, err)
		}
		for _, path := range found {
			relative, err := filepath.Rel(repository, path)
			if err != nil {
				t.Fatal(err)
			}
			if relative != start {
				all = append(all, relative)
			}
		}
	}
	return all
}

// testTour asserts that the page shows the commands of the demo, and what they print.
func testTour(t *testing.T, c *cluster.Cluster, path string) {
	steps, err := readPage(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = tour.Run(t.Context(), c, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	have, err := parseConsole(transcript(out.String()), 1)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for i, want := range steps {
		if i == len(have) {
			t.Fatalf("line %d: the demo does not run %s", want.line, want.command)
		}
		found, err := match(want.node+" "+want.command, have[i].node+" "+have[i].command, names)
		if err != nil {
			t.Fatalf("line %d: the demo's command is %s: %v", want.line, have[i].command, err)
		}
		if found, err = match(want.shown, have[i].shown, found); err != nil {
			t.Errorf("line %d: %s: %v\nIt printed:\n%s", want.line, want.command, err, have[i].shown)
			continue
		}
		names = found
	}
	if len(have) > len(steps) {
		t.Errorf("the page does not show the demo's command %s", have[len(steps)].command)
	}
}

// transcript are the commands that the demo ran, and what they printed: the rest are sentences.
func transcript(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if prompt.MatchString(strings.TrimSuffix(line, "\n")) || strings.HasPrefix(line, "  ") {
			b.WriteString(line)
		}
	}
	return b.String()
}
