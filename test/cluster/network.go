package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// maxNodes is how many nodes the address plan has room for.
const maxNodes = 32

// A cluster has a /24 for its bridge and nodes (10.217.S.0/24), with the control
// plane at .1 and the nodes from .10 on, and 32 /24s below 10.224.0.0/11 for the
// pods of its nodes.

func (c *Cluster) subnetNumber() (int, error) {
	ip, _, err := net.ParseCIDR(c.state.Subnet)
	if err != nil {
		return 0, fmt.Errorf("read the cluster's subnet: %w", err)
	}
	return int(ip.To4()[2]), nil
}

func (n *Node) podSubnet(cluster int) string {
	return fmt.Sprintf("10.%d.%d.0/24", 224+cluster/8, cluster%8*32+n.index)
}

// makeBridge makes the bridge of the nodes and returns the control plane's address on it.
func (c *Cluster) makeBridge(ctx context.Context) (net.IP, error) {
	number, err := c.subnetNumber()
	if err != nil {
		return nil, err
	}
	address := net.IPv4(10, 217, byte(number), 1)
	bridge := c.state.Link("b")
	for _, args := range [][]string{
		{"link", "add", bridge, "type", "bridge"},
		{"address", "add", address.String() + "/24", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if err := c.command(ctx, append([]string{"ip"}, args...)...); err != nil {
			return nil, fmt.Errorf("make the nodes' bridge: %w", err)
		}
	}
	return address, nil
}

// connectNode gives a node its link to the bridge, and the machine a route to the
// node's pods.
func (c *Cluster) connectNode(ctx context.Context, n *Node) error {
	number, err := c.subnetNumber()
	if err != nil {
		return err
	}
	n.address = net.IPv4(10, 217, byte(number), byte(10+n.index))
	link := c.state.Link(nodeLink(n))
	for _, args := range [][]string{
		{"ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.pid())},
		{"ip", "link", "set", link, "master", c.state.Link("b"), "up"},
		n.enter("ip", "address", "add", n.address.String()+"/24", "dev", "eth0"),
		n.enter("ip", "link", "set", "eth0", "up"),
		n.enter("ip", "route", "add", "default", "via", c.address.String()),
		{"ip", "route", "replace", n.podSubnet(number), "via", n.address.String(), "dev", c.state.Link("b")},
	} {
		if err := c.command(ctx, args...); err != nil {
			return fmt.Errorf("connect %s: %w", n.Name, err)
		}
	}
	return n.writeCNI(number)
}

// nodeLink is by what State knows the machine's end of the node's link.
func nodeLink(n *Node) string { return "v" + strconv.Itoa(n.index) }

// writeCNI configures pod networking: a link from each pod to its node.
func (n *Node) writeCNI(cluster int) error {
	dir := filepath.Join(n.dir, "cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config := fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "berth",
  "plugins": [{
    "type": "ptp",
    "ipMasq": false,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
`, n.podSubnet(cluster))
	return os.WriteFile(filepath.Join(dir, "10-berth.conflist"), []byte(config), 0o644)
}

// command runs a program that belongs to the cluster.
func (c *Cluster) command(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = c.environment("setup")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
