// Package publish tells the cluster what the node's disks hold: it is the one writer
// of the node's NodeDiskCapacity. It owns neither disks nor volumes; it reads their
// state and writes it down, once for many changes and not at all for none.
package publish
