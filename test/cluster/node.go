package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/test/mountns"
)

// Node is a node of the cluster.
type Node struct {
	Name string
	// Disks are the node's disks, in the order of its options.
	Disks []Disk

	options NodeOptions
	index   int
	dir     string // its part of the state directory
	address net.IP
	holder  *process // keeps the namespaces
}

// Disk is a disk of a node.
type Disk struct {
	Path       string // such as /dev/loop3
	File       string // what the loop device is made of
	Size       int64
	SectorSize int
}

// Nodes of the cluster, in the order of its options.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node returns the node of that name.
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the cluster has no node %q", name)
}

// Devices are the paths of the node's disks, separated by commas.
func (n *Node) Devices() string {
	paths := make([]string, len(n.Disks))
	for i, d := range n.Disks {
		paths[i] = d.Path
	}
	return strings.Join(paths, ",")
}

func (n *Node) pid() int { return n.holder.cmd.Process.Pid }

// enter makes a command run in the node's namespaces. nsenter replaces itself by the
// command, so the process is the command's own.
func (n *Node) enter(argv ...string) []string {
	if n.holder == nil {
		return argv
	}
	return append([]string{"nsenter", "--target", strconv.Itoa(n.pid()), "--net", "--mount", "--"}, argv...)
}

// Exec runs a command on a node and returns what it printed.
func (c *Cluster) Exec(ctx context.Context, node string, argv ...string) (string, error) {
	n, err := c.Node(node)
	if err != nil {
		return "", err
	}
	full := n.enter(argv...)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = c.environment("exec")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), node, err, out)
	}
	return string(out), nil
}

// prepareNodes makes everything of the nodes that needs no API server.
func (c *Cluster) prepareNodes(ctx context.Context) error {
	if c.options.Kubelets {
		if err := writeImages(c.images(), c.bin); err != nil {
			return err
		}
	}
	for i, o := range c.options.Nodes {
		n := &Node{Name: o.Name, options: o, index: i, dir: filepath.Join(c.state.Dir, "nodes", o.Name)}
		if err := c.makeDisks(n); err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	if !c.options.Kubelets {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		group.Go(func() error {
			if err := c.startNamespaces(ctx, n); err != nil {
				return err
			}
			if target := n.options.KubeletDirTarget; target != "" {
				const link = `mkdir -p "$1" "$(dirname "$2")" && ln -s "$1" "$2"`
				if _, err := c.Exec(ctx, n.Name, "sh", "-c", link, "link", target, n.options.KubeletDir); err != nil {
					return err
				}
			}
			return c.startContainerd(ctx, n, c.images())
		})
	}
	return group.Wait()
}

// images is the archive of the images that every node has.
func (c *Cluster) images() string { return filepath.Join(c.state.Dir, "images.tar") }

// startNodes brings the nodes into the cluster and waits until they take pods.
func (c *Cluster) startNodes(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		group.Go(func() error {
			start := c.startKubelet
			if !c.options.Kubelets {
				start = c.createNode
			}
			if err := start(ctx, n); err != nil {
				return err
			}
			if c.options.Agents {
				if err := c.StartAgent(ctx, n.Name); err != nil {
					return err
				}
			}
			if c.options.Provisioners {
				if err := c.StartProvisioner(ctx, n.Name); err != nil {
					return err
				}
			}
			c.say("%s ready", n.Name)
			return nil
		})
	}
	return group.Wait()
}

func (c *Cluster) makeDisks(n *Node) error {
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return err
	}
	for _, o := range n.options.Disks {
		if _, err := c.addDisk(n, o); err != nil {
			return err
		}
	}
	return nil
}

// AddDisk gives a node that runs another disk.
func (c *Cluster) AddDisk(node string, o DiskOptions) (Disk, error) {
	n, err := c.Node(node)
	if err != nil {
		return Disk{}, err
	}
	return c.addDisk(n, o)
}

func (c *Cluster) addDisk(n *Node, o DiskOptions) (Disk, error) {
	if o.SectorSize == 0 {
		o.SectorSize = 512
	}
	d := Disk{File: filepath.Join(n.dir, fmt.Sprintf("disk%d.img", len(n.Disks))), Size: o.Size, SectorSize: o.SectorSize}
	f, err := os.Create(d.File)
	if err != nil {
		return Disk{}, err
	}
	if err := errors.Join(f.Truncate(o.Size), f.Close()); err != nil {
		return Disk{}, fmt.Errorf("make a disk of %s: %w", n.Name, err)
	}
	if d.Path, err = c.state.AttachLoop(d.File, d.SectorSize); err != nil {
		return Disk{}, err
	}
	n.Disks = append(n.Disks, d)
	return d, nil
}

// covered are the directories that each node has for itself. They hold everything
// that containerd, kubelet and the agent write at standard paths.
var covered = []string{"/var/lib", "/var/log", "/run"}

// holderScript mounts pairs of directories, makes a file to say so, and waits. Mounts
// propagate within the node, as pods with Bidirectional mounts expect, and not out of it;
// nor between a directory and what it is mounted on, where they would appear twice.
const holderScript = `while [ $# -gt 1 ]; do
	mount --bind "$1" "$2"
	shift 2
done
mount --make-rshared /
ip link set lo up
: > "$1"
exec sleep infinity
`

// namespacesReady is the file of a node that says that its namespaces are made.
const namespacesReady = "namespaces"

func namespacesName(node string) string { return "namespaces-" + node }

// startNamespaces makes the node's namespaces: a process that only waits holds them.
func (c *Cluster) startNamespaces(ctx context.Context, n *Node) error {
	for _, dir := range covered {
		if strings.HasPrefix(c.state.Dir+"/", dir+"/") || strings.HasPrefix(c.bin+"/", dir+"/") {
			return fmt.Errorf("state directory %s and programs %s must lie outside of %s: nodes have their own there", c.state.Dir, c.bin, dir)
		}
	}
	argv := append([]string{"unshare", "--net", "--"}, mountns.Command(mountns.Private, "", "/bin/sh", "-e", "-c", holderScript, "holder")...)
	for _, dir := range covered {
		own := filepath.Join(n.dir, filepath.Base(dir))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		argv = append(argv, own, dir)
	}
	ready := filepath.Join(n.dir, namespacesReady)
	var err error
	n.holder, err = c.run(namespacesName(n.Name), append(argv, ready)...)
	if err != nil {
		return err
	}
	err = waitFor(ctx, n.holder, func(context.Context) error {
		_, err := os.Stat(ready)
		return err
	})
	if err != nil {
		return err
	}
	return c.connectNode(ctx, n)
}

// MakeNode makes the Node of a node without a kubelet again, after it was deleted.
func (c *Cluster) MakeNode(ctx context.Context, name string) error {
	n, err := c.Node(name)
	if err != nil {
		return err
	}
	return c.createNode(ctx, n)
}

// createNode stands in for a kubelet: a Node object that is ready.
func (c *Cluster) createNode(ctx context.Context, n *Node) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}}}
	for k, v := range n.options.Labels {
		node.Labels[k] = v
	}
	if err := c.client.Create(ctx, node); err != nil {
		return fmt.Errorf("create node %s: %w", n.Name, err)
	}
	node.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: quantity("64"), corev1.ResourceMemory: quantity("256Gi"), corev1.ResourcePods: quantity("1000"),
	}
	node.Status.Allocatable = node.Status.Capacity
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "StandIn", Message: "there is no kubelet",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}
	if err := c.client.Status().Update(ctx, node); err != nil {
		return fmt.Errorf("make node %s ready: %w", n.Name, err)
	}
	// The API server taints every new node until a controller sees that it is ready.
	node.Spec.Taints = nil
	if err := c.client.Update(ctx, node); err != nil {
		return fmt.Errorf("remove the taints of node %s: %w", n.Name, err)
	}
	return nil
}

// drain deletes all pods, so that what they hold is given back by the components that know how.
func (c *Cluster) drain(ctx context.Context) error {
	// No controller shall make new ones for them.
	if err := c.state.Kill(ctx, "kube-controller-manager"); err != nil {
		return err
	}
	one := int64(1)
	namespaces := &corev1.NamespaceList{}
	if err := c.client.List(ctx, namespaces); err != nil {
		return err
	}
	for _, ns := range namespaces.Items {
		err := c.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(ns.Name), &client.DeleteAllOfOptions{
			DeleteOptions: client.DeleteOptions{GracePeriodSeconds: &one},
		})
		if err != nil {
			return fmt.Errorf("delete the pods of namespace %s: %w", ns.Name, err)
		}
	}
	return Eventually(ctx, drainPatience, func(ctx context.Context) error {
		pods := &corev1.PodList{}
		if err := c.client.List(ctx, pods); err != nil {
			return err
		}
		if len(pods.Items) > 0 {
			return fmt.Errorf("%d pods are still there, among them %s", len(pods.Items), pods.Items[0].Name)
		}
		return nil
	})
}
