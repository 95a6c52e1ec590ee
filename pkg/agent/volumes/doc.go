// Package volumes brings the node's disks in line with its pods: every inline volume
// of a pod becomes a formatted partition, and every partition whose pod is gone
// becomes free space again. It owns the decision where a volume goes on this node and
// the decision that it may be wiped; how a partition is made and wiped is the business
// of package disk, and mounting that of package csi.
//
// The flow, for one volume:
//
//	pod seen on the watch, or NodePublish     sync / Publish
//	  -> where?    existing, recorded, planned     decide
//	  -> partition, phase Reserved                 create
//	  -> mkfs, phase Formatted                     format
//	  -> mount                                     Publish (mount by package csi)
//	pod gone, or NodeUnpublish                release
//	  -> live answer of the API server             verdict
//	  -> phase Wiping, zeroed, checked, removed    wipe
package volumes
