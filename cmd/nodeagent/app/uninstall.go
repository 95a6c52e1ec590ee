package app

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/berthdev/berth/pkg/agent/uninstall"
)

// uninstallCheck is what the Helm chart runs before Berth is removed.
func uninstallCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall-check",
		Short: "Fails if there are volumes of Berth, and lists them",
		Long: `Fails if there are volumes of Berth, and lists them with their owners.

It reads all PersistentVolumes and NodeDiskCapacities. helm uninstall runs it first.`,
	}
	return withCluster(cmd, func(ctx context.Context, client *uninstall.Client) error {
		return client.Check(ctx, cmd.OutOrStdout())
	})
}

// uninstallRelease is what the Helm chart runs after Berth was removed and its volumes were kept.
func uninstallRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall-release",
		Short: "Takes Berth's finalizer off all PersistentVolumes when no agent runs any more",
		Long: `Takes Berth's finalizer off all PersistentVolumes when no agent runs any more.

The volumes stay on the disks. A later installation on the same nodes serves them again. helm
uninstall runs it last, if the chart's value uninstall.check is false.`,
	}
	namespace := cmd.Flags().String("namespace", "kube-system", "Namespace of the agents' pods.")
	return withCluster(cmd, func(ctx context.Context, client *uninstall.Client) error {
		return client.Release(ctx, *namespace, cmd.OutOrStdout())
	})
}

// withCluster makes the command run with a client of the whole cluster.
func withCluster(cmd *cobra.Command, run func(context.Context, *uninstall.Client) error) *cobra.Command {
	f := &flags{}
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "Path of a kubeconfig. The default is the pod's service account.")
	cmd.Args, cmd.SilenceUsage = cobra.NoArgs, true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		config, err := f.config()
		if err != nil {
			return err
		}
		client, err := uninstall.New(config)
		if err != nil {
			return err
		}
		return run(ctx, client)
	}
	return cmd
}
