package bench

import (
	"context"
	"os"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/test/cluster"
)

// newFakeCluster starts a real etcd, API server and controller manager, and fills
// them with nodes that are only objects. Pods are bound to them and never run.
func newFakeCluster(ctx context.Context, tb testing.TB) *fakeCluster {
	tb.Helper()
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "bench", Log: os.Stderr,
		Manifests: []string{"config/crd"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(); err != nil {
			tb.Error(err)
		}
	})
	f := &fakeCluster{
		config: c.RESTConfig(),
		start: func(ctx context.Context) (func() error, error) {
			return c.StopScheduler, c.StartScheduler(ctx)
		},
	}
	if f.client, err = client.NewWithWatch(f.config, client.Options{Scheme: newScheme(tb)}); err != nil {
		tb.Fatal(err)
	}
	f.populate(ctx, tb)
	return f
}
