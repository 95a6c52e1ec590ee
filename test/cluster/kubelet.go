package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// drainPatience is how long pods may take to end; a dead kubelet never ends them.
const drainPatience = 20 * time.Second

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

// startContainerd runs a node's containerd and gives it the images.
func (c *Cluster) startContainerd(ctx context.Context, n *Node, images string) error {
	config := filepath.Join(n.dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(containerdConfig(n)), 0o644); err != nil {
		return err
	}
	p, err := c.run(containerdName(n.Name), n.enter("containerd", "--config", config)...)
	if err != nil {
		return err
	}
	return waitFor(ctx, p, func(ctx context.Context) error {
		if _, err := os.Stat(filepath.Join(n.dir, "run/containerd/containerd.sock")); err != nil {
			return err
		}
		return c.command(ctx, n.enter("ctr", "--namespace", "k8s.io", "images", "import", images)...)
	})
}

func containerdName(node string) string { return "containerd-" + node }

func containerdConfig(n *Node) string {
	// Without the capability a sandbox that wants a better OOM score than its parent
	// does not start.
	restrict := !hasCapability(unix.CAP_SYS_RESOURCE)
	// overlayfs can't put its changes on another overlayfs, which is what the root of
	// a container is.
	snapshotter := "overlayfs"
	var st unix.Statfs_t
	if err := unix.Statfs(n.dir, &st); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		snapshotter = "native"
	}
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = %t
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %q
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, pauseImage, restrict, snapshotter, cniDir(), filepath.Join(n.dir, "cni"))
}

// hasCapability says whether programs started from here have a capability.
func hasCapability(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// startKubelet runs a node's kubelet and waits until the node takes pods.
func (c *Cluster) startKubelet(ctx context.Context, n *Node) error {
	if err := c.makeCgroup(n); err != nil {
		return err
	}
	cert, key, err := c.authority.issueFiles("kubelet-"+n.Name, n.Name, nil, n.address)
	if err != nil {
		return err
	}
	config, err := yaml.Marshal(c.kubeletConfig(n, cert, key))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, "kubelet.yaml"), config, 0o644); err != nil {
		return err
	}
	err = c.authority.kubeconfig(filepath.Join(n.dir, "kubelet.kubeconfig"), c.server, "system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	return c.runKubelet(ctx, n)
}

func (c *Cluster) kubeletConfig(n *Node, cert, key string) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.authority.file("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              cert,
		"tlsPrivateKeyFile":        key,
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               filepath.Join(c.state.Cgroup(), n.Name),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		// A machine whose disk is nearly full is the developer's business.
		"evictionHard": map[string]string{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		// The node's network namespace needs no rules, and may not be able to have any.
		"makeIPTablesUtilChains": false,
		"resolvConf":             "",
		// There is no DNS server; without an address every pod gets an event about it.
		"clusterDNS":      []string{"10.96.0.10"},
		"volumePluginDir": filepath.Join(n.options.KubeletDir, "volume-plugins"),
		"staticPodPath":   "",
		// A kubelet looks that often whether a mounted volume is to grow; the default is a minute.
		"syncFrequency": "5s",
		// Every pod is wanted at once here.
		"registryPullQPS": 0,
		"eventRecordQPS":  0,
		"kubeAPIQPS":      200,
		"kubeAPIBurst":    400,
	}
}

func (c *Cluster) runKubelet(ctx context.Context, n *Node) error {
	argv := []string{filepath.Join(c.bin, "kubelet"),
		"--config=" + filepath.Join(n.dir, "kubelet.yaml"),
		"--kubeconfig=" + filepath.Join(n.dir, "kubelet.kubeconfig"),
		"--hostname-override=" + n.Name,
		"--node-ip=" + n.address.String(),
		"--root-dir=" + n.options.KubeletDir,
		"--v=2",
	}
	if len(n.options.Labels) > 0 {
		var labels []string
		for k, v := range n.options.Labels {
			labels = append(labels, k+"="+v)
		}
		argv = append(argv, "--node-labels="+strings.Join(labels, ","))
	}
	started := time.Now()
	p, err := c.run(kubeletName(n.Name), n.enter(argv...)...)
	if err != nil {
		return err
	}
	return waitFor(ctx, p, func(ctx context.Context) error { return c.nodeReady(ctx, n.Name, started) })
}

// RestartKubelet ends a node's kubelet and starts it again.
func (c *Cluster) RestartKubelet(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	if err := c.end(kubeletName(node), syscall.SIGTERM); err != nil {
		return err
	}
	return c.runKubelet(ctx, n)
}

func kubeletName(node string) string { return "kubelet-" + node }

// nodeReady is nil when the kubelet that was started then says that the node is
// ready, and nothing keeps pods away from it.
func (c *Cluster) nodeReady(ctx context.Context, name string, started time.Time) error {
	node := &corev1.Node{}
	if err := c.client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return err
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("node %s has the taint %s", name, node.Spec.Taints[0].Key)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		// The API has whole seconds.
		if condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(started.Truncate(time.Second)) {
			return nil
		}
		return fmt.Errorf("node %s is not ready: %s", name, condition.Message)
	}
	return fmt.Errorf("node %s has not said whether it is ready", name)
}
