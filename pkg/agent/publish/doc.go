// Package publish publishes what the node's disks hold. It is the only writer of the status of the node's
// NodeDiskCapacity. It owns neither disks nor volumes: it reads their state and writes it, once for many changes and
// not at all for none.
package publish
