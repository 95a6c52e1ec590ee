// Package ledger is the scheduler's record of disk space on all nodes. It keeps what each node has published, and the
// volumes that were placed there and are not published yet. What is free is the one less the other. It also keeps
// whether an agent is registered on the node, because without one no volume is mounted there.
//
// It owns no client and no informer: the packages that watch the API fold what they see into the ledger. Where on a
// disk a volume goes is package placement's decision.
//
// # Where to start
//
// Read the rule and the races below, then [Ledger] in ledger.go and [Ledger.Reserve] in reserve.go.
//
//   - ledger.go: the Ledger, its invariants, and what is folded in about nodes and pods.
//   - volumes.go, growth.go: what is folded in about PersistentVolumes, and how they grow.
//   - pieces.go: further pieces of PersistentVolumes that cannot grow where they are.
//   - moves.go: where PersistentVolumes are moved that can grow neither where they are nor in pieces.
//   - where.go: on which node and where on its disks a volume is.
//   - capacity.go, published.go: what a node publishes, checked and prepared for subtraction.
//   - node.go, snapshot.go: the state of one node, and the immutable view of it that readers get.
//   - reserve.go: reservations, from Reserve to the end of one. usable.go: what nominated pods keep.
//   - search.go, index.go, entries.go: whether requests fit, and the nodes that fit them best.
//   - owners.go: on which node a disk serves that several nodes publish.
//   - refusals.go: nodes to which the API server refused to bind a pod.
//   - stats.go: sums for metrics.
//   - contents.go, validate.go: for tests.
//
// # The rule
//
// A volume is identified by the GUID of its partition, in the API and on the node. Free on a disk is
//
//	published free extents − what every record has beyond its published partition
//
// That is the whole record while the partition is not published. Of a volume that may grow, it is the tail that is not
// published yet. It is a subtraction of sets of bytes. So it may be done twice, in any order, and by several observers
// of one volume. Nothing is counted and nothing is undone.
//
// # The races
//
// Two watches (pods, capacities) and the scheduler's own decisions reach the ledger in no particular order. Each item
// is one race, and what makes it harmless.
//
//   - Reserved, then bound, then the pod's event: Reserve leaves an assumed record. The event of the bound pod replaces
//     it with what the API server has. Both are the same volume, so its space is taken once, without a gap.
//   - The capacity that shows the volume comes before the pod's event, or even before Bind returns: the partition is
//     published, so the record subtracts nothing, whenever it comes. The published free extents do not have the volume
//     either.
//   - The capacity that shows the volume comes long after the pod's event, from a node that is behind: until then the
//     record takes the extent away.
//   - The volume was wiped and the capacity shows it as free, while the pod object still exists (a finalizer, a slow
//     kubelet): the record subtracts again. So the extent is withheld until the pod is gone. That is too little free
//     space, never too much.
//   - The pod is gone or has ended, but the capacity still shows the volume: the record is dropped. The extent is not
//     free yet, because the node does not publish it as free. It is free when the node has wiped it.
//   - The pod is gone before the node has published the volume: the extent is free at once. If the node had begun to
//     make the volume, the next volume at that extent waits on the node for the wipe. It waits a few seconds at most,
//     and is then put elsewhere on the node.
//   - The node changes while Reserve plans on it: the plan is not recorded, and Reserve plans again.
//   - Bind failed: the scheduler forgets what it assumed. A record that the API server showed (an observed one) is
//     forgotten only when the API server says so. So a late Unreserve cannot free the space of a pod that is bound.
//   - Bind failed, but may have been done (a timeout, a lost connection): the record is held in doubt until the pod's
//     event says whether it is bound or deleted. Until then only the pod itself may use the space, for its next try. If
//     that try goes to another node, the space here stays held, because the pod may be bound here.
//   - An old capacity comes after a newer one, or after its deletion: it is ignored, by its revision. This also holds
//     when the node is no longer kept: the highest revision of the nodes that are gone is remembered.
//   - The API server was restored from a backup: lists have lower revisions than before. A list is believed at any
//     revision (ListCapacity, EndList), and a PersistentVolume that the informer has again exists again.
//   - The API server refused to bind a pod to a node: the pod would come back and choose the same tightest node. So the
//     refusal is remembered until that node publishes a change of its disks, or for RefusalLifetime. Other changes of
//     its NodeDiskCapacity do not show that the cause is gone.
//
// Of claims, whose reservation is their PersistentVolume:
//
//   - Reserved, then created, then the PersistentVolume's event: the component that creates it adds its record
//     (AddVolume) before it releases the reservation. So there is no gap.
//   - It is deleted before its creator adds it: a record of a deleted PersistentVolume is not taken. The UIDs that were
//     deleted last are remembered.
//   - It is created and deleted while the watch is interrupted: neither list has it, so there is no event. The
//     component that follows PersistentVolumes reads those from the API server that were added and not seen
//     (UnseenVolumes).
//   - Its creation failed, but may have been done: the reservation is in doubt until its creator knows, or the claim is
//     gone.
//   - Two pods share a claim, or a pod's scheduler and the controller of claims serve it at once: the second one shares
//     the place of the first (Reserve), or gets the error that it is on another node (ElsewhereError).
//   - It is deleted by force while the node publishes the partition: the extent stays taken.
//   - It is made again while the earlier volume of that partition is being wiped: the earlier one does not stand for
//     the new one, so both take their place.
//   - It is made again while an old publication shows the earlier volume, whose place another volume has by now:
//     Reserve fails (ErrStaleCapacity) until the node publishes that the earlier volume has ended.
//   - It is made again before an old publication shows the earlier volume: the ledger takes that volume for the new
//     one, as if the node had moved it. Until the node publishes again, another volume may get the recorded place. The
//     node then makes one of the two elsewhere. This is not harmless, and it cannot be distinguished from a volume that
//     was moved.
//   - It is allowed to grow: the longer record counts at once. Events of the PersistentVolume that were sent before its
//     capacity was raised do not take it back (Grow, WithdrawGrowth). Whether a failed write was done is not known
//     until a later write that succeeds rules it out (SettleGrowth).
//   - It gets further pieces: each is a record of its own, withheld from the plan on. The plan is made for the pieces
//     of one version of the PersistentVolume, which the write names. It ends with the next version, as that of a move
//     (PlanPieces, SetVolume). If the ledger has other pieces than that version, nothing is planned.
//   - It is to be moved: its new place is a record of the partition to which it is copied. So that place is taken
//     before the node has it, and while the copy is published. When the node publishes the volume there, the record
//     takes what the volume has. A move that is planned ends with the first version of the PersistentVolume after the
//     one that it was planned for: the write names that version, so it is in the next one, or is refused (PlanMove,
//     SetVolume).
//
// Of disks (owners.go):
//
//   - Two nodes publish one disk: it serves on its owner alone, and on the other nothing is free. The leader writes
//     down the owner. Until then the owner is the node that published the disk first.
//   - The Node is deleted, and its capacity is not: nothing is free there until there is a Node.
//
// Of all:
//
//   - A restart: the same pods and capacities, in any order, give the same ledger. Nothing that matters is only in
//     memory: an assumed record without a bound pod is a reservation that was never made.
//
// # Locks
//
// One mutex guards the ledger's bookkeeping, and nothing is planned under it. Readers of a node never take it: every
// change makes a new immutable Snapshot of the node and stores it behind an atomic pointer. Queries over all nodes
// (BestNodes) are answered from an index that changes together with the snapshots, some hundred nodes at a time.
// Reserve plans on a snapshot and records the plan if the node is still the same.
package ledger
