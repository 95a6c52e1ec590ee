// Package volumes brings the node's disks in line with its pods and PersistentVolumes:
// every inline volume of a pod and every PersistentVolume of the node becomes a
// formatted partition, and every partition whose pod or claim is gone becomes free space
// again. It owns the decision where a volume goes on this node and the decision that it
// may be wiped; how a partition is made and wiped is the business of package disk, and
// mounting that of package csi.
//
// Three types do the work, and Manager only connects them: inline for the volumes of pods,
// persistent for those of PersistentVolumes, reclaim for the end of both. Reclaim asks inline
// and persistent by the interface decider; they ask reclaim by the interface reclaimer.
// Package csi uses Manager.
//
// In the order of an inline volume's life:
//
//	pod seen on the watch              inline.sync         inline.go
//	NodePublish                        inline.Publish      inline_publish.go
//	  -> where?                        placer.choose       place.go, contested.go, decide.go (pure)
//	  -> partition, phase Reserved     inline.create       inline_place.go
//	  -> mkfs, phase Formatted         formatter.ready     format.go, filesystem.go
//	pod gone, or NodeUnpublish         reclaim.release     reclaim.go
//	  -> live answer of the API server inline.verdict      inline_release.go, owners.go
//	  -> phase Wiping, zeroed, removed wiper.wipe          wiping.go
//	  -> log, event, metrics           wiper.record        wiping.go
//	pod gone, its end not seen         sweeper.suspect     sweep.go
//	  -> live list, listed as orphan   sweeper.sweep       sweep.go, orphans.go
//	  -> after the grace, if few       reclaim.reclaimOrphan
//
// A persistent volume lives as long as its PersistentVolume. That is the reservation, and
// the partition stays until it says otherwise:
//
//	PersistentVolume seen              persistent.sync     persistent.go
//	NodeStage                          stager.Stage        persistent_stage.go
//	  -> partition                     maker.realize       persistent_place.go
//	  -> file system                   stager.makeReady    persistent_stage.go, format.go
//	capacity raised                    grower              persistent_grow.go
//	claim gone, policy Delete          releaser.release    persistent_release.go
//	  -> live answer                   actionFor           persistentvolumes.go
//	  -> PersistentVolume deleted, held by our finalizer   releaser.deleteHeld
//	  -> wiped                         wiper.wipe          wiping.go
//	  -> our finalizer removed         releaser.finalize
//	PersistentVolume gone              releaser.verdict: kept, and reported
//	CSI controllers                    provisioner         persistent_calls.go
//
// Beside them: node.go and disks.go (the disks, and the one way to a disk's engine), queue.go,
// locks.go, reports.go (events), inuse.go (mounts and published devices), metrics.go.
package volumes
