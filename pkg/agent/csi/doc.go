// Package csi serves the CSI Identity and Node services to the kubelet and registers
// them with it. It owns mount points; partitions and file systems are made by package
// volumes, which it asks for a device.
package csi
