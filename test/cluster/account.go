package cluster

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// accountKubeconfig writes a kubeconfig for one of Berth's service accounts, so that
// a program has just the rights that its manifests give it. With a node, the token
// is what a pod on that node would be given: it names the node.
func (c *Cluster) accountKubeconfig(ctx context.Context, path, account, node string) error {
	request := &authenticationv1.TokenRequest{}
	// A demo may be left running, and nothing renews it.
	seconds := int64(validity.Seconds())
	request.Spec.ExpirationSeconds = &seconds
	if node != "" {
		object := &corev1.Node{}
		if err := c.client.Get(ctx, client.ObjectKey{Name: node}, object); err != nil {
			return fmt.Errorf("get a token for %s: %w", account, err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Node", Name: node, UID: object.UID,
		}
	}
	who := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: account}}
	if err := c.client.SubResource("token").Create(ctx, who, request); err != nil {
		return fmt.Errorf("get a token for %s: %w", account, err)
	}
	return writeKubeconfig(path, c.config.Host, c.authority.pem, &clientcmdapi.AuthInfo{Token: request.Status.Token})
}
