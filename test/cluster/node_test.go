package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
)

// TestNode: a node with disks runs a pod, kubectl reaches into it, the kubelet can
// be restarted, and nothing is left behind.
func TestNode(t *testing.T) {
	testenv.NeedRoot(t)
	ctx := t.Context()
	before := readSysctls(t)
	c, err := Start(ctx, Options{
		Name: t.Name(), Log: t.Output(), Kubelets: true, StockScheduler: true,
		Nodes: []NodeOptions{{
			Labels: map[string]string{"disks": "two"},
			Disks:  []DiskOptions{{Size: 256 << 20}, {Size: 512 << 20, SectorSize: 4096}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		assertNothingLeft(t, c)
		assertNodesGone(t, c)
		if after := readSysctls(t); after != before {
			t.Errorf("kernel settings were %q, are %q", before, after)
		}
	}()
	assertDisks(t, c)

	start := time.Now()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain", Namespace: metav1.NamespaceDefault},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"disks": "two"},
			Containers:   []corev1.Container{{Name: "main", Image: BusyboxImage, Command: []string{"sh", "-c", "echo hello; sleep 3600"}}},
		},
	}
	if err := c.Client().Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	err = Eventually(ctx, time.Minute, func(ctx context.Context) error {
		if err := c.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("the pod is %s: %v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pod running after %s", time.Since(start))

	if out, err := c.Kubectl(ctx, "exec", "plain", "--", "hostname"); err != nil || strings.TrimSpace(out) != "plain" {
		t.Errorf("kubectl exec printed %q, %v", out, err)
	}
	if out, err := c.Kubectl(ctx, "logs", "plain"); err != nil || strings.TrimSpace(out) != "hello" {
		t.Errorf("kubectl logs printed %q, %v", out, err)
	}
	if err := c.RestartKubelet(ctx, "node1"); err != nil {
		t.Error(err)
	}
	assertReboot(t, c, pod)
}

// assertReboot reboots node1 and holds that it forgot what it should, and that the pod
// runs again in a new container.
func assertReboot(t *testing.T, c *Cluster, pod *corev1.Pod) {
	t.Helper()
	ctx := t.Context()
	n, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "node1", "sh", "-c", "touch /run/volatile /var/lib/durable; mount -t tmpfs mounted /mnt"); err != nil {
		t.Fatal(err)
	}
	device := n.Disks[0].Path
	if out, err := exec.CommandContext(ctx, "addpart", device, "1", "2048", "2048").CombinedOutput(); err != nil {
		t.Fatalf("add a partition: %v: %s", err, out)
	}
	start := time.Now()
	if err := c.PowerOff(ctx, "node1"); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob("/sys/block/" + filepath.Base(device) + "/loop*p*"); err != nil || len(left) > 0 {
		t.Errorf("the kernel still has %v, %v", left, err)
	}
	if err := c.PowerOff(ctx, "node1"); err == nil {
		t.Error("a node was powered off twice")
	}
	if err := c.PowerOn(ctx, "node1"); err != nil {
		t.Fatal(err)
	}
	t.Logf("rebooted in %s", time.Since(start))
	if out, err := c.Exec(ctx, "node1", "sh", "-c", "ls /run/volatile /var/lib/durable 2>&1; grep mounted /proc/mounts || true"); err != nil ||
		!strings.Contains(out, "/var/lib/durable") || strings.Contains(out, "\n/run/volatile") || strings.Contains(out, "/mnt") {
		t.Errorf("after the reboot there are %s, %v", out, err)
	}
	err = Eventually(ctx, time.Minute, func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "exec", "plain", "--", "hostname")
		if err != nil || strings.TrimSpace(out) != "plain" {
			return fmt.Errorf("kubectl exec printed %q, %w", out, err)
		}
		return c.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := pod.Status.ContainerStatuses[0].RestartCount; n == 0 {
		t.Error("the pod's container outlived the reboot")
	}
}

func assertDisks(t *testing.T, c *Cluster) {
	t.Helper()
	n, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range n.Disks {
		sysfs := filepath.Join("/sys/block", filepath.Base(d.Path))
		sectors, err := os.ReadFile(filepath.Join(sysfs, "size"))
		if err != nil || strings.TrimSpace(string(sectors)) != strconv.FormatInt(d.Size/512, 10) {
			t.Errorf("%s has %q sectors of 512 bytes, want %d bytes, %v", d.Path, sectors, d.Size, err)
		}
		size, err := os.ReadFile(filepath.Join(sysfs, "queue/logical_block_size"))
		if err != nil || strings.TrimSpace(string(size)) != strconv.Itoa(d.SectorSize) {
			t.Errorf("%s has sectors of %q, want %d, %v", d.Path, size, d.SectorSize, err)
		}
	}
	out, err := c.Exec(t.Context(), "node1", "cat", "/proc/self/mountinfo")
	if err != nil || !strings.Contains(out, " /var/lib ") {
		t.Errorf("the node has no /var/lib of its own: %s, %v", out, err)
	}
}

// assertNodesGone looks for what nodes make, in other ways than clean-up does.
func assertNodesGone(t *testing.T, c *Cluster) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if backing, err := os.ReadFile(f); err == nil && strings.Contains(string(backing), c.state.ID) {
			t.Errorf("loop device %s is left", f)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), c.state.ID) {
		t.Errorf("mounts are left: %s, %v", mounts, err)
	}
	namespaces, err := filepath.Glob("/run/netns/*")
	if err != nil || len(namespaces) > 0 {
		t.Errorf("network namespaces are left: %v, %v", namespaces, err)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.Contains(l.Name, c.state.ID) {
			t.Errorf("network link %s is left", l.Name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
		groups, err := filepath.Glob(pattern + c.state.ID + "*")
		if err != nil || len(groups) > 0 {
			t.Errorf("control groups are left: %v, %v", groups, err)
		}
	}
}

func readSysctls(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"} {
		v, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(name + "=" + string(v))
	}
	return all.String()
}

// TestClustersSideBySide: clusters do not meet, and the kernel's settings are put
// back by the last of them.
func TestClustersSideBySide(t *testing.T) {
	testenv.NeedRoot(t)
	before := readSysctls(t)
	var clusters [2]*Cluster
	var errs [2]error
	var wg sync.WaitGroup
	for i := range clusters {
		wg.Go(func() {
			clusters[i], errs[i] = Start(t.Context(), Options{
				Name: fmt.Sprintf("%s%d", t.Name(), i), Log: t.Output(), Kubelets: true,
				Nodes: []NodeOptions{{Disks: []DiskOptions{{Size: 64 << 20}}}},
			})
		})
	}
	wg.Wait()
	for i, c := range clusters {
		if errs[i] != nil {
			t.Error(errs[i])
			continue
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		assertNothingLeft(t, c)
		assertNodesGone(t, c)
		other := clusters[1-i]
		if i == 0 && other != nil {
			if err := other.RestartKubelet(t.Context(), "node1"); err != nil {
				t.Errorf("the other cluster is disturbed: %v", err)
			}
		}
	}
	if after := readSysctls(t); after != before {
		t.Errorf("kernel settings were %q, are %q", before, after)
	}
}

// TestNodesWithoutKubelets: agents and the scheduler run against nodes that are only
// objects and disks.
func TestNodesWithoutKubelets(t *testing.T) {
	testenv.NeedRoot(t)
	ctx := t.Context()
	c, err := Start(ctx, Options{
		Name: t.Name(), Log: t.Output(), Agents: true, Scheduler: true,
		Nodes: []NodeOptions{{Disks: []DiskOptions{{Size: 256 << 20}}}}, Manifests: []string{"config/samples/diskclass.yaml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer assertNothingLeft(t, c)
	defer c.Stop()
	inService := func(ctx context.Context) error {
		ndc := &v1alpha1.NodeDiskCapacity{}
		if err := c.Client().Get(ctx, client.ObjectKey{Name: "node1"}, ndc); err != nil {
			return err
		}
		if len(ndc.Status.Disks) != 1 || ndc.Status.Disks[0].State != v1alpha1.DiskReady {
			return fmt.Errorf("the disk is not in service: %+v", ndc.Status)
		}
		return nil
	}
	if err := Eventually(ctx, time.Minute, inService); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.KillAgent("node1"), c.StartAgent(ctx, "node1"), c.StopAgent("node1"), c.KillScheduler(), c.StartScheduler(ctx)); err != nil {
		t.Error(err)
	}
}
