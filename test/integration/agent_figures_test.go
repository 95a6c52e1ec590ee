package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/test/cluster"
)

// Limits of an agent at rest.
const (
	maxResident = 40 << 10 // KiB
	maxCPU      = 0.002    // of a core
)

// process builds the agent as it is delivered and returns a function that starts it.
func (n *node) process() func() *exec.Cmd {
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
	return func() *exec.Cmd {
		c := exec.Command(binary, "--node-name="+n.name, "--kubeconfig="+n.kubeconfig(), "--devices="+strings.Join(n.options.Devices, ","),
			"--csi-socket="+n.options.CSISocket, "--registration-dir="+n.options.RegistrationDir, "--orphan-grace=100ms")
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

// TestAgentAtRest: an agent of a node with some pods costs next to nothing.
func TestAgentAtRest(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for a while")
	}
	n := newNode(t, 8*gib, 8*gib)
	process := n.process()()
	defer n.end(process)
	n.ready()
	for i := range 20 {
		n.pod(fmt.Sprintf("plain%d", i), "", nil)
		pod := n.pod(fmt.Sprintf("disk%d", i), "", nil, n.volumeOf("data", "300Mi", ""))
		n.formatted(pod, "data")
	}
	// What the volumes have set off ends first; then as long as it takes to see a tenth of a
	// percent in the kernel's hundredths of seconds.
	<-time.After(5 * time.Second)
	before, began := cpu(t, process), time.Now()
	<-time.After(20 * time.Second)
	used := (cpu(t, process) - before).Seconds() / time.Since(began).Seconds()
	resident := memory(t, process, "VmRSS")
	t.Logf("at rest with 40 pods and 20 volumes: %d KiB resident (%d KiB of them anonymous), at most %d KiB before; %.2f%% of a core",
		resident, memory(t, process, "RssAnon"), memory(t, process, "VmHWM"), used*100)
	if resident > maxResident {
		t.Errorf("resident memory is %d KiB, the limit is %d", resident, maxResident)
	}
	if used > maxCPU {
		t.Errorf("CPU is %.2f%%, the limit is %.2f%%", used*100, maxCPU*100)
	}
}

// cpu is the time that the process has used. The kernel counts it in hundredths.
func cpu(t *testing.T, process *exec.Cmd) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	// Fields are counted behind the name, which may have spaces.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * time.Second / 100
}

// memory reads a line of the process's status, in KiB.
func memory(t *testing.T, process *exec.Cmd, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in the status", name)
	return 0
}

// TestAgentLatency logs how long the kubelet waits for a volume.
func TestAgentLatency(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for a while")
	}
	n := newNode(t, 40*gib)
	process := n.process()()
	defer n.end(process)
	n.ready()
	for _, fsType := range []string{"ext4", "xfs"} {
		var cold, seen []time.Duration
		for i := range 12 {
			pod := n.pod(fmt.Sprintf("%s%d", fsType, i), "", nil, n.volumeOf("data", "1Gi", fsType))
			// The kubelet and the agent hear of the pod at the same time: the worst case is a
			// kubelet that asks at once.
			begin := time.Now()
			if err := n.publish(pod, "data"); err != nil {
				t.Fatal(err)
			}
			cold = append(cold, time.Since(begin))
			n.unpublish(pod, "data")
			n.delete(pod)

			pod = n.pod(fmt.Sprintf("%s%d-late", fsType, i), "", nil, n.volumeOf("data", "1Gi", fsType))
			n.formatted(pod, "data")
			begin = time.Now()
			if err := n.publish(pod, "data"); err != nil {
				t.Fatal(err)
			}
			seen = append(seen, time.Since(begin))
			n.leave(pod)
		}
		t.Logf("%s 1Gi, NodePublishVolume to mounted: nothing prepared %v best, %v median; prepared on the pod watch %v best, %v median",
			fsType, slices.Min(cold), median(cold), slices.Min(seen), median(seen))
	}
}

func (n *node) leave(pod *corev1.Pod) {
	n.t.Helper()
	n.unpublish(pod, "data")
	n.delete(pod)
}

func median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[len(d)/2]
}
