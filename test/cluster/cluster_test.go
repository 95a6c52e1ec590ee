package cluster

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster/host"
)

func TestControlPlane(t *testing.T) {
	ctx := t.Context()
	start := time.Now()
	c, err := Start(ctx, Options{Name: t.Name(), Log: t.Output(), Manifests: []string{"config/crd"}})
	if err != nil {
		t.Fatal(err)
	}
	defer assertNothingLeft(t, c)
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	t.Logf("started in %s", time.Since(start))

	ndc := &v1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	if err := c.Client().Create(ctx, ndc); err != nil {
		t.Errorf("a custom resource of the manifests: %v", err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain", Namespace: metav1.NamespaceDefault},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "any"}}},
	}
	if err := c.Client().Create(ctx, pod); err != nil {
		t.Errorf("a pod where no controller makes service accounts: %v", err)
	}
	if out, err := c.Kubectl(ctx, "get", "ndc", "node1", "-o", "name"); err != nil || !strings.Contains(out, "node1") {
		t.Errorf("kubectl printed %q, %v", out, err)
	}
	if _, err := Start(ctx, Options{Dir: c.Dir()}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second cluster in the same directory: %v", err)
	}
}

func TestControllerManager(t *testing.T) {
	ctx := t.Context()
	c, err := Start(ctx, Options{Name: t.Name(), Log: t.Output(), ControllerManager: true, StockScheduler: true})
	if err != nil {
		t.Fatal(err)
	}
	defer assertNothingLeft(t, c)
	defer c.Stop()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain", Namespace: metav1.NamespaceDefault},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "any"}}},
	}
	if err := c.Client().Create(ctx, pod); err != nil {
		t.Fatalf("a pod of the default service account: %v", err)
	}
}

// TestStartFails: what was made before the failure is gone after it.
func TestStartFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	_, err := Start(t.Context(), Options{Name: t.Name(), Dir: dir, Manifests: []string{"config/no-such-directory"}})
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("want that the manifests are missing, got %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is left: %v", err)
	}
}

func assertNothingLeft(t *testing.T, c *Cluster) {
	t.Helper()
	assertNoProcess(t, c.state)
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory %s is left: %v", c.Dir(), err)
	}
	address := strings.TrimPrefix(c.config.Host, "https://")
	if !strings.HasPrefix(address, "127.") {
		return // gone with the bridge; what answers to that address now is not known
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("the API server still listens")
	}
}

func assertNoProcess(t *testing.T, s *host.State) {
	t.Helper()
	pids, err := s.Processes()
	if err != nil || len(pids) > 0 {
		t.Errorf("processes %v of the cluster are left, %v", pids, err)
	}
}
