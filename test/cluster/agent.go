package cluster

import (
	"context"
	"path/filepath"
	"syscall"
)

// StartAgent runs cmd/nodeagent on a node. With kubelets it returns when the agent's
// driver is registered.
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
	user, groups := serviceAccount("berth-nodeagent")
	if err := c.authority.kubeconfig(kubeconfig, c.server, user, groups...); err != nil {
		return err
	}
	argv := []string{program, "--node-name=" + n.Name, "--kubeconfig=" + kubeconfig, "--devices=" + n.Devices()}
	if !c.options.Kubelets {
		argv = append(argv, "--csi-socket="+filepath.Join(n.dir, "csi.sock"), "--registration-dir="+filepath.Join(n.dir, "registry"))
	}
	p, err := c.run(agentName(node), n.enter(argv...)...)
	if err != nil || !c.options.Kubelets {
		return err
	}
	return waitFor(ctx, p, patience, func(ctx context.Context) error { return c.registered(ctx, node) })
}

// KillAgent ends a node's agent as a crash would.
func (c *Cluster) KillAgent(node string) error { return c.end(agentName(node), syscall.SIGKILL) }

// StopAgent ends a node's agent in good order.
func (c *Cluster) StopAgent(node string) error { return c.end(agentName(node), syscall.SIGTERM) }

func agentName(node string) string { return "agent-" + node }
