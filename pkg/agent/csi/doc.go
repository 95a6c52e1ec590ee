// Package csi serves the CSI services to the kubelet and registers them with it: Identity,
// Node, and for the stock sidecars Controller. It owns mount points, and the growth of
// file systems; partitions are made, formatted and wiped by package volumes, which it
// asks for a device.
package csi
