package cluster

import (
	"context"
	"net/http"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// provisionerManifests are the rights that the external-provisioner needs beside the agent's.
const provisionerManifests = "test/cluster/sidecar/rbac.yaml"

// provisionerPort is where each says that it is up. Nodes have network namespaces of their own.
const provisionerPort = "9811"

// StartProvisioner runs the external-provisioner on a node as a sidecar of the agent's pod
// would be run: on the agent's socket, and with the token of its service account. It ends by
// itself when the agent does; then a kubelet would start it again.
func (c *Cluster) StartProvisioner(ctx context.Context, node string) error {
	n, err := c.Node(node)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(n.dir, "provisioner.kubeconfig")
	if err := c.accountKubeconfig(ctx, kubeconfig, "berth-nodeagent", n.Name); err != nil {
		return err
	}
	argv := []string{
		"env", "NODE_NAME=" + n.Name, "NAMESPACE=" + metav1.NamespaceSystem,
		filepath.Join(c.bin, provisionerProgram.name), "--kubeconfig=" + kubeconfig,
		"--csi-address=/var/lib/kubelet/plugins/disk.berth.dev/csi.sock", "--http-endpoint=:" + provisionerPort, "--v=2",
	}
	argv = append(argv, c.options.ProvisionerArgs...)
	p, err := c.run(provisionerName(n.Name), n.enter(argv...)...)
	if err != nil {
		return err
	}
	return waitFor(ctx, p, func(ctx context.Context) error {
		return get(ctx, http.DefaultClient, "http://"+n.address.String()+":"+provisionerPort+"/metrics")
	})
}

// provisionerName is the name of a node's external-provisioner among the components.
func provisionerName(node string) string { return "provisioner-" + node }
