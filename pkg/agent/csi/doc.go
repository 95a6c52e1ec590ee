// Package csi serves the CSI services to the kubelet and registers them with it: Identity, Node, and Controller for
// upstream sidecars. It owns mount points, and the growth of file systems. Package volumes makes, formats and wipes
// partitions, and provides the device of a volume.
//
// Start reading at the call of interest:
//
//	NodeStageVolume, NodeUnstageVolume         stage.go
//	NodePublishVolume, NodeUnpublishVolume     publish.go
//	NodeExpandVolume                           expand.go
//	NodeGetVolumeStats                         stats.go
//	CreateVolume, DeleteVolume, expansion      provision.go
//	ListVolumes, GetCapacity, capabilities     controller.go
//
// The other files:
//   - node.go: the Node service, its lock for each volume, and the status codes of errors.
//   - access.go and size.go: parsed capabilities and capacity ranges.
//   - kubelet.go: where the kubelet's paths may lie.
//   - mount.go: mounting a device, and unmounting. bind.go: mount points, and bind mounts of what is staged.
//   - mountusers.go: what keeps a mount in use.
//   - server.go, identity.go and registration.go: the sockets, and the registration with the kubelet.
package csi
