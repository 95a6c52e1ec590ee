// Package diskcapacity is the scheduler plugin that places a pod's inline volumes and
// claims: it keeps the pod off nodes whose disks have no room for them, prefers the node
// they fit most tightly, reserves the exact extents, and writes those of inline volumes into
// the Binding. Those of claims become PersistentVolumes, in package volumebinding.
//
// It owns the translation between Kubernetes and the ledger (feed.go and feed_volumes.go:
// what is watched and how it is folded in; claims.go and bindable.go: what a pod asks for;
// hints.go, waiting.go, growth.go and gate.go: which events wake a pod) and the plugin's part of a scheduling cycle
// (plugin.go, state.go, nominations.go, bind.go, preemption.go, narrow.go). What is free is the ledger's
// business, where a volume goes is placement's.
//
// A pod without a volume of ours is skipped at PreFilter, PreScore and Bind and treated
// exactly as by the stock scheduler.
package diskcapacity
