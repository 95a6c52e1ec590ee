package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
)

// StartAgent runs cmd/nodeagent on a node and returns when its driver is registered.
func (c *Cluster) StartAgent(ctx context.Context, node string) error {
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
	kubeconfig := filepath.Join(n.dir, "agent.kubeconfig")
	if err := c.accountKubeconfig(ctx, kubeconfig, "berth-nodeagent", node); err != nil {
		return err
	}
	argv := []string{program, "--node-name=" + n.Name, "--kubeconfig=" + kubeconfig, "--devices=" + n.Devices()}
	if !c.options.Kubelets {
		argv = append(argv, "--csi-socket="+filepath.Join(n.dir, "csi.sock"), "--registration-dir="+filepath.Join(n.dir, "registry"))
	}
	argv = append(argv, c.options.AgentArgs...)
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
	csiNode := &storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: v1alpha1.GroupName, NodeID: node}}},
	}
	if err := c.client.Create(ctx, csiNode); err != nil && !apierrors.IsAlreadyExists(err) {
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
