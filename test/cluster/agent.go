package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/mountns"
	"github.com/berthdev/berth/test/objects"
)

// StartAgent runs cmd/nodeagent on a node and returns when its driver is registered. args are
// flags beside those of the cluster's options.
func (c *Cluster) StartAgent(ctx context.Context, node string, args ...string) error {
	return c.startAgent(ctx, node, nil, args)
}

// StartAgentApart runs the agent like StartAgent, with mounts that do not propagate to the node,
// as in a pod without mountPropagation.
func (c *Cluster) StartAgentApart(ctx context.Context, node string) error {
	return c.startAgent(ctx, node, []string{"unshare", "--mount", "--propagation", "private", "--"}, nil)
}

// startAgent runs the agent by a command in front of its own, with further flags.
func (c *Cluster) startAgent(ctx context.Context, node string, by, args []string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	program, err := c.program(ctx, agentProgram)
	if err != nil {
		return err
	}
	if err := c.Install(ctx); err != nil {
		return err
	}
	if by == nil && !c.options.Kubelets {
		// No kubelet looks at the mounts, but the agent insists that one could.
		by = mountns.Command(mountns.Shared, "")
	}
	kubeconfig := filepath.Join(n.dir, "agent.kubeconfig")
	if err := c.accountKubeconfig(ctx, kubeconfig, "berth-nodeagent", node); err != nil {
		return err
	}
	argv := slices.Concat(by, []string{program, "--node-name=" + n.Name, "--kubeconfig=" + kubeconfig})
	if !c.options.AllDevices {
		argv = append(argv, "--devices="+n.Devices())
	}
	if c.options.Kubelets {
		argv = append(argv, "--kubelet-dir="+n.options.KubeletDir)
	} else {
		// Not the folder with the images of the disks: those would be the kubelet's raw block volumes.
		folder := filepath.Join(n.dir, "kubelet")
		if err := os.MkdirAll(filepath.Join(folder, "pods"), 0o750); err != nil {
			return err
		}
		argv = append(argv, "--kubelet-dir="+folder, "--csi-socket="+filepath.Join(n.dir, "csi.sock"), "--registration-dir="+filepath.Join(n.dir, "registry"))
	}
	argv = append(append(argv, c.options.AgentArgs...), args...)
	p, err := c.run(agentName(node), n.enter(argv...)...)
	if err != nil {
		return err
	}
	if !c.options.Kubelets {
		return c.register(ctx, node)
	}
	return waitFor(ctx, p, func(ctx context.Context) error { return c.registered(ctx, node) })
}

// register stands in for a kubelet that has met the agent.
func (c *Cluster) register(ctx context.Context, node string) error {
	if err := c.client.Create(ctx, objects.CSINode(node, v1alpha1.DriverName)); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register the driver of node %s: %w", node, err)
	}
	return nil
}

// registered is nil when the node's kubelet knows the agent's driver.
func (c *Cluster) registered(ctx context.Context, name string) error {
	node := &storagev1.CSINode{}
	if err := c.client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return err
	}
	for _, driver := range node.Spec.Drivers {
		if driver.Name == v1alpha1.GroupName {
			return nil
		}
	}
	return fmt.Errorf("CSINode %s does not have the driver %s", name, v1alpha1.GroupName)
}

// KillAgent ends a node's agent as a crash would.
func (c *Cluster) KillAgent(node string) error { return c.end(agentName(node), syscall.SIGKILL) }

// StopAgent ends a node's agent in good order.
func (c *Cluster) StopAgent(node string) error { return c.end(agentName(node), syscall.SIGTERM) }

// agentName is the name of a node's agent among the components.
func agentName(node string) string { return "agent-" + node }
