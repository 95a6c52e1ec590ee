// Package discovery finds the node's block devices, decides which of them a
// DiskClass selects, and keeps the ones that are ours open. It owns the answer to
// "which disks does this node have"; what is on a disk is the business of package
// disk, and which volumes there should be that of package volumes.
package discovery
