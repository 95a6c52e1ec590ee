package cluster

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/test/cluster/host"
	"github.com/berthdev/berth/test/testenv"
)

// ownerVariable makes the test binary a process that starts a cluster and then does
// what the variable says.
const ownerVariable = "BERTH_TEST_CLUSTER_OWNER"

func TestMain(m *testing.M) {
	if what := os.Getenv(ownerVariable); what != "" {
		owner(what)
	}
	os.Exit(m.Run())
}

func owner(what string) {
	o := Options{Name: "test-owner", Log: os.Stdout}
	if strings.HasPrefix(what, "nodes") {
		o.Kubelets = true
		o.Nodes = []NodeOptions{{Disks: []DiskOptions{{Size: 64 << 20}}}}
	}
	c, err := Start(context.Background(), o)
	if err != nil {
		os.Stdout.WriteString("failed: " + err.Error() + "\n")
		os.Exit(1)
	}
	if strings.HasSuffix(what, "kept") {
		if err := c.Keep(); err != nil {
			os.Stdout.WriteString("failed: " + err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString("kept\n")
		os.Exit(0)
	}
	os.Stdout.WriteString("started\n")
	if strings.HasSuffix(what, "panic") {
		panic("a test that fails badly")
	}
	select {} // until it is killed
}

// TestOwnerDies: whenever and however the process goes that started a cluster, the
// cluster goes, too.
func TestOwnerDies(t *testing.T) {
	for _, test := range []struct {
		name, what string
		kill       string // kill the owner when it says this; empty: it ends by itself
		root       bool
	}{
		{"killed", "control plane", "started", false},
		{"killed while the control plane starts", "control plane", "starting;", false},
		{"panics", "control plane, then panic", "", false},
		{"killed with nodes", "nodes", "started", true},
		{"killed while nodes start", "nodes", "API server ready", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.root {
				testenv.NeedRoot(t)
			}
			before := readSysctls(t)
			runOwner(t, test.what, test.kill)
			repository, err := Repository()
			if err != nil {
				t.Fatal(err)
			}
			err = Eventually(t.Context(), time.Minute, func(context.Context) error {
				states, err := host.List(clustersDir(repository))
				for _, s := range states {
					if s.Name == "test-owner" {
						err = errors.Join(err, errors.New(s.ID+" is still there"))
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if after := readSysctls(t); after != before {
				t.Errorf("kernel settings were %q, are %q", before, after)
			}
		})
	}
}

// TestKeep: a cluster that is kept outlives its owner, until another process removes it.
func TestKeep(t *testing.T) {
	testenv.NeedRoot(t)
	runOwner(t, "nodes, kept", "")
	repository, err := Repository()
	if err != nil {
		t.Fatal(err)
	}
	states, err := host.List(clustersDir(repository))
	if err != nil {
		t.Fatal(err)
	}
	var kept *host.State
	for _, s := range states {
		if s.Name == "test-owner" {
			kept = s
		}
	}
	if kept == nil {
		t.Fatal("the cluster is gone")
	}
	c := &Cluster{state: kept}
	if err := c.connect(); err != nil {
		t.Fatal(err)
	}
	if err := c.Client().List(t.Context(), &corev1.NodeList{}); err != nil {
		t.Errorf("the cluster does not answer: %v", err)
	}
	found, err := Down(t.Context(), "test-owner", t.Output())
	if err != nil || !found {
		t.Errorf("Down: %v, %v", found, err)
	}
	assertNothingLeft(t, c)
	assertNodesGone(t, c)
}

// runOwner runs an owner until it ends, or kills it when it says something.
func runOwner(t *testing.T, what, kill string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerVariable+"="+what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		t.Log(lines.Text())
		if strings.Contains(lines.Text(), "failed") {
			t.Fatal(lines.Text())
		}
		if kill != "" && strings.Contains(lines.Text(), kill) && !killed {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if kill != "" && !killed {
		t.Fatalf("the owner never said %q", kill)
	}
}
