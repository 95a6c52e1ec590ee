// Package integration tests Berth's programs against a real API server, on real disks.
package integration

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
)

// shared is the one control plane of a run: starting it costs more than any test.
var shared struct {
	sync.Once
	cluster *cluster.Cluster
	err     error
}

// controlPlane returns the run's control plane, and starts it for the first test that
// needs one. It has the CRDs and the agent's and the scheduler's permissions; tests
// keep apart by the names of their nodes and namespaces.
func controlPlane(t testing.TB) *cluster.Cluster {
	t.Helper()
	testenv.NeedRoot(t)
	shared.Do(func() {
		shared.cluster, shared.err = cluster.Start(context.Background(), cluster.Options{
			Name: "integration",
			Log:  os.Stderr,
			Manifests: []string{
				"config/crd",
				"config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml",
				"config/scheduler/rbac.yaml",
			},
		})
	})
	if shared.err != nil {
		t.Fatalf("no control plane: %v", shared.err)
	}
	return shared.cluster
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}
