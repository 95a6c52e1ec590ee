// Package publish publishes what the node's disks hold. It writes the status of the node's NodeDiskCapacity, except the
// condition DisksShared, which the scheduler's leader writes. It owns neither disks nor volumes: it reads their state
// and writes it, once for many changes and not at all for none.
package publish
