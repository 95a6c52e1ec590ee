// Package provisioner is the part of Berth that needs the view of the whole cluster and is
// not the placing of a pod. It runs beside the scheduler, on the scheduler's ledger and
// informers, while this process leads. It
//
//   - serves claims whose node another scheduler has chosen (placed.go), and says of claims
//     that can never be served what is wrong with them;
//   - serves claims of pods that name their node themselves (pins.go), and those of StorageClasses
//     that do not wait for a pod (choose.go);
//   - lets bound claims grow into the space behind their volumes (grow.go, status.go);
//   - publishes CSIStorageCapacity objects, if that is asked for (capacity.go);
//   - says of volumes whose node is gone what can be done (lost.go).
//
// It talks to the API server alone and never to a node: what it writes is the
// PersistentVolume, which the node's agent follows. Claims of pods of our own profiles are
// the plugin's business: those get their node and their volume in one update, so that a
// claim with a node and without a volume is none of them.
//
// # Crashes
//
// Nothing is remembered that matters. Every step is recorded in the API before the next
// begins, and each sync starts from what is there:
//
//   - The PersistentVolume was created, and the answer was lost: it is named after the claim, so
//     the next try finds it; and it names the claim, so that the PersistentVolume controller
//     binds the two. If the claim is gone by then, the same controller releases the volume,
//     and the agent removes it like any other.
//   - The PersistentVolume's capacity was raised, and the claim's status was not: the
//     difference of the two is what the next sync goes by.
//
// An answer that was lost leaves the reservation standing until the next try has shown
// what is in the API.
package provisioner
