// Package provisioner has the controllers that need the view of the whole cluster, except for placing pods. They run
// beside the scheduler, on its ledger and informers, while this process leads:
//
//   - unbound.go serves claims whose node another scheduler has chosen. Events say what is wrong with claims that can
//     never be served.
//   - pins.go and immediate.go serve claims of pods that name their node themselves, and those of StorageClasses with
//     volumeBindingMode Immediate.
//   - drain.go gives the volumes of disks that are drained other places.
//   - compact.go does so with those of disks that are compacted.
//   - grow.go and status.go grow bound claims into the space behind their volumes. Where that is taken, pieces.go gives
//     them further pieces, and move.go has volumes moved that cannot have those.
//   - storage_capacity.go publishes CSIStorageCapacity objects, if that is enabled.
//   - lost.go says of volumes whose node is gone what can be done, and gone.go releases those whose class says so.
//
// They use the API server alone and never a node: they write the PersistentVolume, which the node's agent follows.
// Claims of pods of our own profiles are the plugin's. They get their node and their volume in one update, so a claim
// with a node and without a volume is none of them.
//
// Start reading at [Controllers] in controllers.go, with syncClaim. What is known of claims in memory only is in
// memory.go.
//
// # Crashes
//
// Nothing that matters is only in memory. Every step is recorded in the API before the next one begins, and each sync
// starts from the objects in the API:
//
//   - The PersistentVolume was created, and the response was lost: it is named after the claim, so the next try finds
//     it. It names the claim, so the PersistentVolume controller binds the two. If the claim is gone by then, that
//     controller releases the volume, and the agent removes it like any other.
//   - The PersistentVolume's capacity was raised, and the claim's status was not: the next sync compares the two.
//
// When a response was lost, the reservation stays until the next try has read what is in the API.
package provisioner
