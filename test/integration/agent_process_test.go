package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berthdev/berth/test/cluster"
)

// process builds the agent as it is delivered and returns a function that starts it, with more flags.
func (n *node) process() func(more ...string) *exec.Cmd {
	n.t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		n.t.Fatal(err)
	}
	binary := filepath.Join(n.dir, "nodeagent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./cmd/nodeagent")
	build.Dir = repository
	if out, err := build.CombinedOutput(); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	return func(more ...string) *exec.Cmd {
		c := exec.Command(binary, append(more, "--node-name="+n.name, "--kubeconfig="+n.kubeconfig(), "--devices="+strings.Join(n.options.Devices, ","),
			"--kubelet-dir="+n.options.KubeletDir, "--csi-socket="+n.options.CSISocket, "--registration-dir="+n.options.RegistrationDir, "--orphan-grace=100ms", "--orphan-limit=100")...)
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		c.Stderr = n.t.Output()
		if err := c.Start(); err != nil {
			n.t.Fatal(err)
		}
		return c
	}
}

// end stops a process in good order.
func (n *node) end(process *exec.Cmd) {
	n.t.Helper()
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Error(err)
	}
	if err := process.Wait(); err != nil {
		n.t.Errorf("the agent ended with %v", err)
	}
}
