// Package ledger is the scheduler's memory of disk space: what every node has
// published, which volumes of pods and claims were placed there that the node has not
// published yet, what is free once the one is taken from the other, and whether the node
// has an agent to make volumes at all. It owns neither
// clients nor informers: the packages that watch the API fold what they saw into the ledger.
//
// # The rule
//
// A volume is identified by the GUID of its partition, on both sides. Free on a disk is
//
//	published free extents − what every record has beyond its published partition
//
// which is all of it while the partition is not published, and the missing tail of one that
// is allowed to grow. It is a subtraction of sets of bytes, so it may be done twice, in any order, and
// about the same volume by several observers. Nothing is counted, nothing is undone.
//
// # The races
//
// Two watches (pods, capacities) and the scheduler's own decisions reach the ledger in
// no particular order. Each line is one such race and what makes it harmless.
//
//   - Reserved, then bound, then the pod's event: Reserve leaves an assumed record, the
//     event of the bound pod replaces it with what the API server has. They are the same
//     volume, so the space is taken once, without a gap between the two.
//   - The capacity that shows the volume arrives before the pod's event, or even before
//     Bind returns: the partition is published, so the record subtracts nothing, whenever
//     it comes. (The published free extents do not hold the volume either.)
//   - The capacity that shows the volume arrives long after the pod's event (the stale
//     publisher): until then the record takes the extent away.
//   - The volume was wiped and the capacity shows it as free, while the pod object still
//     exists (a finalizer, a slow kubelet): the record subtracts again, so the extent is
//     withheld until the pod is gone. That is less than there is, never more.
//   - The pod is gone or has ended, but the capacity still shows the volume: the record is
//     dropped and the extent is not free yet, because the node does not say so. It is
//     sold when the node has wiped it.
//   - The pod is gone before the node has ever shown the volume: the extent is free at
//     once. If the node had begun to make the volume, the next one that gets the extent
//     waits on the node for the wipe, a few seconds at most, and is then put elsewhere on the node.
//   - The node changes while Reserve plans on it: the plan is not recorded, and Reserve plans again.
//   - Bind failed: the scheduler forgets what it assumed. But what the API server showed
//     (an observed record) is forgotten only when the API server says so, so a late
//     Unreserve cannot free the space of a pod that is really bound.
//   - Bind failed, but may really have happened (a timeout, a lost connection): the record
//     is held in doubt. The pod's event settles it: bound or deleted. Until then only the
//     pod itself may use the space, for its next try; and if that goes to another node,
//     the space here stays held, because the pod may be bound here nevertheless.
//   - An old capacity after a newer one, or after its deletion: ignored, by revision, even
//     if all that is left of the node is the highest revision of those that are gone.
//   - The API server was restored from a backup: lists have lower revisions than what was known. A list is what there
//     is (ListCapacity, Listed), and a PersistentVolume that the informer has again exists again.
//   - The API server refused the binding of a pod to a node: without an event to wake it,
//     the pod would come back and choose the same tightest node. The refusal is
//     remembered until that node publishes something new about its disks, or for RefusalLifetime:
//     what others write into its NodeDiskCapacity is no sign that the cause is gone.
//
// Of claims, whose reservation is their PersistentVolume:
//
//   - Reserved, then made, then the PersistentVolume's event: who makes it adds its record
//     before the reservation is released (AddVolume), so there is no gap.
//   - It is deleted before its maker says that it was made: a record of what was deleted is
//     not taken (the UIDs that went last are remembered).
//   - It is made and deleted while the watch is interrupted: neither list has it, so there is no event. Who follows
//     PersistentVolumes asks the API server for those that were made and not seen (Unseen).
//   - Its making failed, but may really have happened: the reservation is in doubt until the
//     maker knows, or the claim is gone.
//   - Two pods share a claim, or a pod's scheduler and the controller of claims placed by
//     others serve it at once: the second shares the first one's place (Reserve), or gets
//     the error that it is on another node (Elsewhere).
//   - Deleted by force while the node publishes the partition: the extent stays taken.
//   - Made again while the earlier volume of that partition is being wiped: the one that is
//     wiped does not stand for the new one, so both take their place.
//   - Made again while an old publication shows the earlier volume, whose place was given to another one since: Reserve
//     fails (ErrBehind) until the node publishes that the earlier volume has ended.
//   - Made again before an old publication shows the earlier volume: that is taken for the new one, as if the node had
//     moved it. Until the node publishes again, the recorded place may be given to another volume. Which of the two the
//     node makes last, it makes elsewhere. This is not harmless, and it cannot be told from a volume that was moved.
//   - Allowed to grow: the longer record stands at once, and events of the PersistentVolume
//     that were sent before it was made larger do not take it back (Grow, Withdraw). Whether a
//     write that failed was done is not known until one that succeeds rules it out (Granted).
//
// Of disks (owners.go):
//
//   - Two nodes publish one disk: it serves on its owner alone, and on the other nothing is free. Who
//     owns it is written down by the leader; until then it is the node that published it first.
//   - The Node is deleted, and its capacity is not: nothing is free there until there is a Node.
//
// And of all:
//
//   - A restart: the same pods and capacities, in any order, give the same ledger. Nothing
//     that mattered was only in memory: an assumed record without a bound pod is a
//     reservation that never happened.
//
// # Locks
//
// One mutex guards the ledger's bookkeeping, and nothing is planned under it. Readers of a node never take it: every
// change makes a new immutable Snapshot of the node concerned and stores it behind an atomic pointer. What is asked of
// all nodes at once (Nearest) is answered from an index that changes together with the snapshots, some hundred nodes at
// a time. Reserve plans on a snapshot and records the plan if the node is still the same.
package ledger
