package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/demo/tour"
)

const clusterName = "demo"

func up(ctx context.Context, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	start := time.Now()
	repository, err := cluster.Repository()
	if err != nil {
		return err
	}
	if _, err := cluster.Down(ctx, clusterName, out); err != nil {
		return err
	}
	fmt.Fprintln(out, "Starting a Kubernetes cluster of three nodes on this machine.")
	options := tour.Options()
	options.Name, options.Dir, options.Log = clusterName, filepath.Join(repository, ".build", clusterName), out
	c, err := cluster.Start(ctx, options)
	if err != nil {
		return err
	}
	if err := tour.Run(ctx, c, out); err != nil {
		return errors.Join(err, c.Stop())
	}
	if err := c.Keep(); err != nil {
		return errors.Join(err, c.Stop())
	}
	fmt.Fprintf(out, `
That took %s. The cluster goes on running; look around with
  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl get ndc,pods -o wide
and remove it with
  make demo-down
`, time.Since(start).Round(time.Second), c.Kubeconfig(), filepath.Join(repository, ".build/bin"))
	return nil
}
