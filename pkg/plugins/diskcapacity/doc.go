// Package diskcapacity is the scheduler plugin that places a pod's inline volumes and claims. It keeps the pod off
// nodes whose disks have no room for them, prefers the node that they fit best, and reserves the exact extents. It
// writes the extents of inline volumes into the Binding. Those of claims become PersistentVolumes, in package
// volumebinding.
//
// It owns the translation between Kubernetes and the ledger, and the plugin's part of a scheduling cycle. What is free
// is the ledger's, and where on a disk a volume goes is placement's. A pod without a volume of ours is skipped at
// PreFilter, PreScore and Bind, and treated exactly as by the stock scheduler.
//
// # Where to start
//
// Read a scheduling cycle in plugin.go, from PreFilter to Unreserve, with the cycle's state in state.go.
//
// The scheduling cycle:
//
//   - plugin.go: PreFilter, Filter, Reserve, Unreserve.
//   - claims.go, bindable.go: what a pod requests, and which PersistentVolumes its claims may be bound to.
//   - narrow.go: the nodes that a pod is tried on in a large cluster.
//   - score.go: Score.
//   - nominations.go, preemption.go: nominated pods, and PostFilter.
//   - bind.go, reservation.go: Bind and PostBind.
//   - explain.go: why nodes were refused.
//   - args.go, profile.go: the plugin's arguments, and what its profile needs.
//
// What is watched and folded into the ledger:
//
//   - feed.go: what all profiles of a scheduler share.
//   - feed_pods.go: pods, with their records.
//   - feed_capacities.go, reports.go: NodeDiskCapacities.
//   - feed_classes.go: DiskClasses.
//   - feed_volumes.go, feed_unseen.go: PersistentVolumes.
//   - feed_nodes.go, feed_agents.go: Nodes and CSINodes.
//   - shared.go: what other packages of the process get of it.
//   - still.go: the plugin over objects that do not change, for kubectl berth.
//
// Which events wake a pod, that is, move it back to the scheduler's active queue:
//
//   - pre_enqueue.go: PreEnqueue, which gates pods.
//   - hints.go, hints_claims.go: the queueing hints.
//   - irrelevant.go: which events need no hint.
//   - waiting.go: the pods that the plugin has refused or is trying.
//   - requeue.go, space_gain.go: the pods that a node's new free space wakes, in rounds.
//
// Metrics are in metrics.go, metrics_lag.go and metrics_collector.go.
package diskcapacity
