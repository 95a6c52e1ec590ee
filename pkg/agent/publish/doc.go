// Package publish publishes what the node's disks hold. It writes the status of the node's NodeDiskCapacity, except the
// condition DisksShared, which the scheduler's leader writes. It owns neither disks nor volumes: it reads their state
// and writes it, once for many changes and not at all for none.
//
// Start reading at Publisher.publish in publisher.go. status.go makes the status from the disks, and devices.go its
// list of devices. metadata.go cleans the object's metadata. limit.go keeps the status small enough for etcd. delay.go
// decides how long a write may wait for further changes.
package publish
