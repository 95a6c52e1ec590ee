package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// PowerOff ends a node as a loss of power does, all processes at once and none asked,
// except that what was written stays written: its programs, its pods, its mounts, and the
// kernel's partitions of its disks. Its disks and its /var stay.
func (c *Cluster) PowerOff(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	if n.holder == nil {
		return fmt.Errorf("power off %s: it has no kubelet", node)
	}
	// Those first that would see the others end and act on it.
	for _, name := range []string{kubeletName(node), agentName(node), containerdName(node), namespacesName(node)} {
		if err := c.cutOff(ctx, name); err != nil {
			return fmt.Errorf("power off %s: %w", node, err)
		}
	}
	n.holder = nil
	// The mounts go with the last process, and release the partitions.
	if err := c.state.RemoveCgroup(ctx, node); err != nil {
		return fmt.Errorf("power off %s: %w", node, err)
	}
	for _, d := range n.Disks {
		if err := c.state.ForgetPartitions(ctx, d.Path); err != nil {
			return fmt.Errorf("power off %s: %w", node, err)
		}
	}
	// The machine's end of the link goes with the namespace, though not at once.
	if err := c.state.RemoveLink(ctx, nodeLink(n)); err != nil {
		return fmt.Errorf("power off %s: %w", node, err)
	}
	// What is in memory on a real machine.
	return os.RemoveAll(filepath.Join(n.dir, "run"))
}

// cutOff kills a component, if it runs, and all that it started.
func (c *Cluster) cutOff(ctx context.Context, name string) error {
	c.mu.Lock()
	p := c.processes[name]
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if err := c.state.Kill(ctx, name); err != nil {
		return err
	}
	<-p.done
	return nil
}

// PowerOn brings a node up that was powered off, with its agent if the cluster runs agents, and
// returns when it takes pods.
func (c *Cluster) PowerOn(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	if n.holder != nil {
		return fmt.Errorf("power on %s: it runs", node)
	}
	if err := os.Remove(filepath.Join(n.dir, namespacesReady)); err != nil {
		return err
	}
	if err := c.startNamespaces(ctx, n); err != nil {
		return err
	}
	if err := c.startContainerd(ctx, n, c.images()); err != nil {
		return err
	}
	if err := c.startKubelet(ctx, n); err != nil {
		return err
	}
	if !c.options.Agents {
		return nil
	}
	return c.StartAgent(ctx, node)
}

// Reboot is PowerOff and PowerOn.
func (c *Cluster) Reboot(ctx context.Context, node string) error {
	if err := c.PowerOff(ctx, node); err != nil {
		return err
	}
	return c.PowerOn(ctx, node)
}
