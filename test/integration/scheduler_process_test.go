package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
)

// schedulerRights runs the scheduler with the rights and the configuration of its
// Deployment: as its service account, with leader election.
func schedulerRights(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	follow(t, s.client, node)
	defer s.killScheduler(t)()
	scheduler := runScheduler(t, s.cluster, "system:serviceaccount:kube-system:berth-scheduler")
	s.create(t, diskPod("mine", 1))
	s.waitBound(t, 1)
	s.create(t, diskPod("large", 11))
	s.waitEvent(t, "large", "wants 11Gi")
	for line := range strings.Lines(scheduler.log()) {
		if strings.Contains(strings.ToLower(line), "forbidden") {
			t.Errorf("the scheduler lacks a right: %s", line)
		}
	}
}

// schedulerProcess is a scheduler that the test itself runs.
type schedulerProcess struct {
	t       *testing.T
	command *exec.Cmd
	output  *os.File
	ended   chan struct{}
}

// runScheduler runs the scheduler's program once.
func runScheduler(t *testing.T, c *cluster.Cluster, user string, change ...string) *schedulerProcess {
	t.Helper()
	return schedulerProgram(t, c, user, change...)()
}

// schedulerProgram builds the scheduler's program and returns a function that runs it with
// the shipped configuration of its Deployment, as some user, until the test ends. change is
// made to the configuration: pairs of what to replace by what.
func schedulerProgram(t *testing.T, c *cluster.Cluster, user string, change ...string) (run func() *schedulerProcess) {
	t.Helper()
	return programOf(t, c, "cmd/scheduler", "config/scheduler/kube-scheduler-config-beside.yaml", user, change...)
}

// programOf is schedulerProgram of another program, a directory, with another configuration.
func programOf(t *testing.T, c *cluster.Cluster, directory, configuration, user string, change ...string) (run func() *schedulerProcess) {
	t.Helper()
	if err := cluster.Build(t.Context(), t.Output(), directory); err != nil {
		t.Fatal(err)
	}
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		for _, a := range credentials.AuthInfos {
			a.Impersonate, a.ImpersonateGroups = user, []string{"system:serviceaccounts", "system:authenticated"}
		}
	}
	dir := t.TempDir()
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config.yaml")
	if err := clientcmd.WriteToFile(*credentials, kubeconfig); err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(repository, configuration))
	if err != nil {
		t.Fatal(err)
	}
	change = append(change, "clientConnection:\n", "clientConnection:\n  kubeconfig: "+kubeconfig+"\n")
	for i := 0; i < len(change); i += 2 {
		if !strings.Contains(string(shipped), change[i]) {
			t.Fatalf("the shipped configuration has no %q", change[i])
		}
	}
	adapted := strings.NewReplacer(change...).Replace(string(shipped))
	if err := os.WriteFile(config, []byte(adapted), 0o600); err != nil {
		t.Fatal(err)
	}
	runs := 0
	return func() *schedulerProcess {
		t.Helper()
		runs++
		p := launch(t, filepath.Join(dir, fmt.Sprintf("log-%d", runs)), filepath.Join(repository, ".build/bin", filepath.Base(directory)),
			"--config="+config, "--v=2", "--secure-port=0", "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
		t.Cleanup(func() {
			p.kill()
			p.output.Close()
		})
		return p
	}
}

// launch starts a scheduler's program that logs into a file.
func launch(t *testing.T, log, program string, arguments ...string) *schedulerProcess {
	t.Helper()
	output, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	p := &schedulerProcess{t: t, command: exec.Command(program, arguments...), output: output, ended: make(chan struct{})}
	p.command.Stdout, p.command.Stderr = output, output
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.ended)
	}()
	return p
}

// kill ends it as a crash would.
func (p *schedulerProcess) kill() {
	_ = p.command.Process.Kill()
	testenv.Receive(p.t, "the end of the killed scheduler", p.ended)
}

func (p *schedulerProcess) signal(s os.Signal) {
	p.t.Helper()
	if err := p.command.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
}

func (p *schedulerProcess) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *schedulerProcess) log() string {
	text, err := os.ReadFile(p.output.Name())
	if err != nil {
		p.t.Error(err)
	}
	return string(text)
}

// TestSchedulerWithoutDefinitions: the scheduler says what it waits for, and goes on when
// it is there.
func TestSchedulerWithoutDefinitions(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{Name: t.Name(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	scheduler := runScheduler(t, c, "")
	const says = "A CustomResourceDefinition of Berth is not installed"
	if err := cluster.Eventually(ctx, 2*patience, func(context.Context) error {
		if !strings.Contains(scheduler.log(), says) {
			return fmt.Errorf("the scheduler's log does not say %q", says)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ctx, "config/crd"); err != nil {
		t.Fatal(err)
	}
	s := &schedulers{cluster: c, client: c.Client()}
	s.create(t, plainPodIn("default", "plain"))
	if err := cluster.Eventually(ctx, 2*patience, func(ctx context.Context) error {
		pod := plainPodIn("default", "plain")
		if err := c.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if !wasRejected(pod) { // there is no node
			return errors.New("the pod was not looked at")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
