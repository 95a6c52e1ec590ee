// Package volumes brings the node's disks in line with its pods and PersistentVolumes:
// every inline volume of a pod and every PersistentVolume of the node becomes a
// formatted partition, and every partition whose pod or claim is gone becomes free space
// again. It owns the decision where a volume goes on this node and the decision that it
// may be wiped; how a partition is made and wiped is the business of package disk, and
// mounting that of package csi.
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
//	  -> log, event, metrics                       sign
//	pod gone, and nobody saw it end           quarantine
//	  -> list of the API server, listed by us      sweep
//	  -> after the grace period, if few            reclaim
//
// A persistent volume differs in whom it lives by. The PersistentVolume is the
// reservation, and the partition stays until that says otherwise:
//
//	PersistentVolume seen, or NodeStage        syncVolume / Stage
//	  -> partition, file system                    realizeVolume, makeReady
//	  -> mount                                     Stage (mount by package csi)
//	capacity raised                            growTo, Expand
//	claim gone, policy Delete                  releaseVolume
//	  -> live answer of the API server             fateOf
//	  -> PersistentVolume deleted, held by us      condemn
//	  -> phase Wiping, zeroed, checked, removed    wipe
//	  -> our finalizer removed                     let
//	PersistentVolume gone, partition not       lookForVolume: kept, and said
package volumes
