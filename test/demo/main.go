// Demo shows Berth on a local cluster with real kubelets and loop devices as disks.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berthdev/berth/test/cluster"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "Interrupted.")
		return 130
	default:
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "demo",
		Short:         "Shows Berth on a local cluster",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		&cobra.Command{
			Use:   "up",
			Short: "Start a local cluster, show pods on partitions, and leave it running",
			Args:  cobra.NoArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return up(cmd.Context(), cmd.OutOrStdout()) },
		},
		&cobra.Command{
			Use:   "down",
			Short: "Remove the demo's cluster and all that it made",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				found, err := cluster.Down(cmd.Context(), clusterName, cmd.OutOrStdout())
				if err == nil && !found {
					cmd.Println("there is no demo cluster")
				}
				return err
			},
		},
		&cobra.Command{
			Use:   "prepare",
			Short: "Build and install what local clusters and tests need",
			Args:  cobra.NoArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return prepare(cmd.Context(), cmd.OutOrStdout()) },
		},
		&cobra.Command{
			Use:   "prepare-vm",
			Short: "Install what virtual machines need",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return cluster.InstallMachinePackages(cmd.Context(), cmd.OutOrStdout())
			},
		},
	)
	return root
}

func prepare(ctx context.Context, out io.Writer) error {
	if err := cluster.Build(ctx, out); err != nil {
		return err
	}
	err := cluster.InstallTestPackages(ctx, out)
	if err != nil && os.Geteuid() != 0 {
		// Without root no nodes run, so that is not needed.
		fmt.Fprintln(out, "nodes can't run here:", err)
		return nil
	}
	return err
}

var errNotRoot = errors.New("the demo needs root: its nodes make loop devices, mounts and network namespaces (try: sudo -E make demo)")
