// Package discovery finds the node's block devices, decides which of them a DiskClass selects, and keeps the disks of
// ours open. It owns the list of the node's disks. Package disk owns the content of a disk. Package volumes decides
// which volumes a disk must have.
package discovery
