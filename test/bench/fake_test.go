package bench

import (
	"context"
	"os"
	"testing"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/fleet"
)

// newFakeCluster starts a real etcd, API server and controller manager, and fills them with nodes that are only
// objects. Pods are bound to them and never run.
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
		start: func(ctx context.Context) (func() error, error) {
			return c.StopScheduler, c.StartScheduler(ctx)
		},
	}
	f.Fleet, err = fleet.New(c.RESTConfig())
	f.must(tb, err)
	f.must(tb, f.Populate(ctx, fakeNodes))
	return f
}
