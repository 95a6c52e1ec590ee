// Package csi serves the CSI services to the kubelet and registers them with it: Identity, Node, and Controller for
// upstream sidecars. It owns mount points, and the growth of file systems. Package volumes makes, formats and wipes
// partitions, and provides the device of a volume.
package csi
