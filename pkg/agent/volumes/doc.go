// Package volumes brings the node's disks in line with its pods and PersistentVolumes. Every inline volume of a pod and
// every PersistentVolume of the node becomes a formatted partition. Every partition whose pod or claim is gone becomes
// free space again.
//
// It owns the decision where a volume goes on this node, and the decision that a volume may be wiped. Package disk
// makes and wipes partitions, and package csi mounts them.
//
// Three controllers do the work, and Manager only connects them. inlineController makes the volumes of pods,
// persistentController those of PersistentVolumes, and reclaimController ends both. reclaimController calls the other
// two through the interface decider. They call it through the interface reclaimer. Package csi uses Manager.
//
// In the order of an inline volume's life:
//
//	pod seen on the watch               inlineController.sync             inline.go
//	NodePublish                         inlineController.Publish          inline_publish.go
//	  -> where?                         placer.choose                     place.go, recordwait.go, decide.go (pure)
//	  -> if there is no room            inlineController.noRoom           inline_noroom.go
//	  -> partition, phase Reserved      inlineController.create           inline_place.go
//	  -> mkfs, phase Formatted          formatter.ensureFormatted         format.go
//	pod gone, or NodeUnpublish          reclaimController.release         reclaim.go
//	  -> live answer of the API server  inlineController.verdict          inline_release.go, owners.go
//	  -> phase Wiping, zeroed, removed  wiper.wipe                        wiper.go
//	  -> log, event, metrics            wiper.reportWipe                  wiper.go
//	pod gone, its end not seen          sweeper.addSuspect                sweep.go
//	  -> live list, listed as orphan    sweeper.sweep                     sweep.go, orphans.go
//	  -> after the grace, if few        reclaimController.reclaimOrphan   reclaim.go
//
// A persistent volume lives as long as its PersistentVolume, which is the reservation:
//
//	PersistentVolume seen               persistentController.sync         persistent.go
//	NodeStage                           stager.Stage                      persistent_stage.go
//	  -> partition                      partitionMaker.ensureForVolume    persistent_place.go
//	  -> file system                    stager.makeReady                  persistent_stage.go, format.go
//	  -> what only an unused one gets   stager.beforeUse                  persistent_pieces.go
//	capacity raised                     grower                            persistent_grow.go, persistent_pieces.go
//	to be moved, and not in use         mover                             persistent_move.go, persistent_move_to.go
//	claim gone, policy Delete           releaser.release                  persistent_release.go
//	  -> live answer                    actionFor                         persistentvolumes.go
//	  -> PersistentVolume deleted, held by our finalizer   releaser.deleteWithFinalizer
//	  -> wiped                          wiper.wipe                        wiper.go
//	  -> our finalizer removed          releaser.finalize
//	PersistentVolume gone               releaser.verdict: kept, and reported
//	CSI controllers                     provisioner                       persistent_calls.go
//
// The other files:
//   - node.go and disks.go: the disks, and engineOf as the only access to a disk's engine.
//   - persistentvolumes.go and pods.go: the watches of PersistentVolumes and pods.
//   - drain.go and compact.go: how far the disks are that operators want drained or compacted.
//   - policy.go: the wipe policy of a volume.
//   - blocked.go and inuse.go: what keeps a volume from being wiped.
//   - progress.go: how far wipes and moves are.
//   - queue.go and locks.go: work queues, and locks by volume and disk.
//   - manager.go, reports.go, metrics.go and errors.go: the wiring, events, metrics and errors.
package volumes
