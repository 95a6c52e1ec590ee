package app

import (
	"os"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/pkg/agent/manifest"
)

// manifests is the command that writes the node's PersistentVolumes again.
func manifests() *cobra.Command {
	o := manifest.Options{Sys: os.DirFS("/sys/block")}
	policy := string(corev1.PersistentVolumeReclaimRetain)
	cmd := &cobra.Command{
		Use:     "manifests",
		Short:   "Prints PersistentVolumes for the persistent volumes that the node's disks hold",
		Example: `  nodeagent manifests --node-name=node-1 --devices='/dev/nvme*' --bind > node-1.yaml`,
		Long: `Prints a PersistentVolume, as YAML, for each persistent volume that the disks of this node hold.

It only reads, beside a running agent, and needs no API server. It reads no device but those
that --devices names.

Applied with kubectl, the PersistentVolumes are Available. A claim of the same StorageClass,
size and mode binds one with its data. With --bind only the claim of the namespace and name
that the volume was made for binds it. So a StatefulSet that is made again finds its data.

To release a volume instead, print it with --reclaim-policy=Delete, apply that one and delete
it. The agent wipes the volume, and then the PersistentVolume goes.

Claims and classes are known from the notes on the disks. Volumes that CSI
sidecars have made have none: name the classes for those.`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.ReclaimPolicy = corev1.PersistentVolumeReclaimPolicy(policy)
			volumes, err := manifest.Volumes(cmd.Context(), o)
			if err := manifest.Write(cmd.OutOrStdout(), volumes); err != nil {
				return err
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.NodeName, "node-name", os.Getenv("NODE_NAME"), "Name of the Node whose disks these are. The default is $NODE_NAME.")
	fs.StringSliceVar(&o.DevicePatterns, "devices", nil, "Shell patterns for the paths of the disks to read, such as '/dev/nvme*'. Required: no other device is read.")
	fs.StringVar(&o.StorageClass, "storage-class", "", "StorageClass of the PersistentVolumes; the default is the one that each was made with. A claim that is to bind one must name the same.")
	fs.StringVar(&o.DiskClass, "disk-class", "", "DiskClass of the disks; the default is the one that each volume was made with.")
	fs.BoolVar(&o.Bind, "bind", false, "Reserve each PersistentVolume for the claim of the namespace and name that it was made for, as far as the disk knows it.")
	fs.StringVar(&policy, "reclaim-policy", policy, "Reclaim policy of the PersistentVolumes: Retain or Delete.")
	return cmd
}
