package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// patience is how long a component may take to get ready on a machine that has
// other things to do as well.
const patience = 2 * time.Minute

// serviceRange is where Services get their addresses. Nothing routes them: there is
// no kube-proxy.
const serviceRange = "10.96.0.0/16"

// chooseAddress returns where the control plane listens: the bridge of the nodes, or
// loopback when there are no nodes to reach it.
func (c *Cluster) chooseAddress(ctx context.Context) (net.IP, error) {
	if c.state.Subnet == "" {
		return net.IPv4(127, 0, 0, 1), nil
	}
	return c.makeBridge(ctx)
}

// freePort returns a port that no process listens on. It lies below the range from which
// the kernel serves all other processes, so it stays free until the component has it.
func freePort(address net.IP) (int, error) {
	const first, last = 20000, 32000
	for range 1000 {
		port := first + rand.IntN(last-first)
		l, err := net.Listen("tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port on %s between %d and %d", address, first, last)
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	etcd, err := c.startEtcd(ctx)
	if err != nil {
		return err
	}
	if err := c.startAPIServer(ctx, etcd); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.checkRelease(); err != nil {
		return err
	}
	// The API server makes it, but says that it is ready a little earlier.
	err = Eventually(ctx, patience, func(ctx context.Context) error {
		return c.client.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &corev1.Namespace{})
	})
	if err != nil {
		return err
	}
	if c.options.Agents || c.options.Scheduler {
		if err := c.Install(ctx); err != nil {
			return err
		}
	}
	if c.options.Provisioners {
		if err := c.Apply(ctx, provisionerManifests); err != nil {
			return err
		}
	}
	if err := c.Apply(ctx, c.options.Manifests...); err != nil {
		return err
	}
	c.say("API server ready")
	if !c.options.ControllerManager {
		return nil
	}
	return c.startControllerManager()
}

func (c *Cluster) startEtcd(ctx context.Context) (endpoint string, err error) {
	const loopback = "127.0.0.1"
	var urls [2]string
	for i := range urls {
		port, err := freePort(net.ParseIP(loopback))
		if err != nil {
			return "", err
		}
		urls[i] = fmt.Sprintf("http://%s:%d", loopback, port)
	}
	clientURL, peerURL := urls[0], urls[1]
	p, err := c.run("etcd", filepath.Join(c.bin, "etcd"),
		"--name=berth",
		"--data-dir="+filepath.Join(c.state.Dir, "etcd"),
		"--listen-client-urls="+clientURL, "--advertise-client-urls="+clientURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL,
		"--initial-cluster=berth="+peerURL,
		// The data is thrown away with the cluster.
		"--unsafe-no-fsync",
		"--log-level=warn",
	)
	if err != nil {
		return "", err
	}
	return clientURL, waitFor(ctx, p, func(ctx context.Context) error {
		return get(ctx, http.DefaultClient, clientURL+"/health")
	})
}

func (c *Cluster) startAPIServer(ctx context.Context, etcd string) error {
	port, err := freePort(c.address)
	if err != nil {
		return err
	}
	c.server = fmt.Sprintf("https://%s:%d", c.address, port)
	cert, key, err := c.authority.issueFiles("kube-apiserver", "kubernetes", nil,
		c.address, net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1))
	if err != nil {
		return err
	}
	kubeletCert, kubeletKey, err := c.authority.issueFiles("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"})
	if err != nil {
		return err
	}
	// There is no front proxy, but components complain for as long as none could be.
	frontProxy, err := newAuthority(filepath.Join(c.state.Dir, "pki", "front-proxy"))
	if err != nil {
		return err
	}
	public, private, err := c.authority.serviceAccountKeys()
	if err != nil {
		return err
	}
	c.accountKey = private
	if err := c.authority.kubeconfig(c.Kubeconfig(), c.server, "admin", "system:masters"); err != nil {
		return err
	}
	args := []string{c.serverProgram("kube-apiserver"),
		"--etcd-servers=" + etcd,
		"--bind-address=" + c.address.String(), "--advertise-address=" + c.address.String(),
		"--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + cert, "--tls-private-key-file=" + key,
		"--client-ca-file=" + c.authority.file("ca.crt"),
		"--requestheader-client-ca-file=" + frontProxy.file("ca.crt"),
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--kubelet-certificate-authority=" + c.authority.file("ca.crt"),
		"--kubelet-client-certificate=" + kubeletCert, "--kubelet-client-key=" + kubeletKey,
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + public, "--service-account-signing-key-file=" + private,
		"--service-cluster-ip-range=" + serviceRange,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		// No other API server will ever share the endpoints of this one.
		"--endpoint-reconciler-type=none",
		"--v=1",
	}
	if !c.options.ControllerManager {
		// No controller makes the service accounts that this plugin wants every pod to have.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	p, err := c.run("kube-apiserver", append(args, c.options.APIServerArgs...)...)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.authority.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Proxy: nil}
	defer transport.CloseIdleConnections()
	return waitFor(ctx, p, func(ctx context.Context) error {
		return get(ctx, &http.Client{Transport: transport}, c.server+"/readyz")
	})
}

func (c *Cluster) startControllerManager() error {
	kubeconfig := filepath.Join(c.state.Dir, "kube-controller-manager.kubeconfig")
	if err := c.authority.kubeconfig(kubeconfig, c.server, "system:kube-controller-manager"); err != nil {
		return err
	}
	port, err := freePort(c.address)
	if err != nil {
		return err
	}
	args := []string{c.serverProgram("kube-controller-manager"),
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + c.address.String(), "--secure-port=" + strconv.Itoa(port),
		"--use-service-account-credentials",
		"--service-account-private-key-file=" + c.accountKey,
		"--root-ca-file=" + c.authority.file("ca.crt"),
		"--leader-elect=false",
		// The stock 20 a second make its start last.
		"--kube-api-qps=1000", "--kube-api-burst=2000",
		// Ready nodes are up in seconds and gone in seconds here.
		"--node-monitor-grace-period=20s",
		"--v=1",
	}
	if len(c.options.Controllers) > 0 {
		args = append(args, "--controllers="+strings.Join(c.options.Controllers, ","))
	}
	_, err = c.run("kube-controller-manager", args...)
	return err
}

// waitControllerManager waits until pods can be made: they are refused until their
// service account exists.
func (c *Cluster) waitControllerManager(ctx context.Context) error {
	if !c.options.ControllerManager {
		return nil
	}
	c.mu.Lock()
	p := c.processes["kube-controller-manager"]
	c.mu.Unlock()
	return waitFor(ctx, p, func(ctx context.Context) error {
		account := &corev1.ServiceAccount{}
		return c.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "default"}, account)
	})
}

// StopControllerManager ends kube-controller-manager: no controller makes new pods for
// deleted ones any more.
func (c *Cluster) StopControllerManager() error {
	return c.end("kube-controller-manager", syscall.SIGKILL)
}

// get succeeds when the URL answers 200.
func get(ctx context.Context, by *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := by.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return nil
}
