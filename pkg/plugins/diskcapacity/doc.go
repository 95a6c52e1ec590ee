// Package diskcapacity is the scheduler plugin that places a pod's inline volumes: it
// keeps the pod off nodes whose disks have no room for them, prefers the node they fit
// most tightly, reserves the exact extents, and writes them into the Binding.
//
// It owns the translation between Kubernetes and the ledger (feed.go: what is watched
// and how it is folded in; hints.go: which events wake a pod) and the plugin's part of
// a scheduling cycle (plugin.go, state.go, bind.go,
// preemption.go, narrow.go). What is free is the ledger's
// business, where a volume goes is placement's.
//
// A pod without a volume of ours is skipped at PreFilter, PreScore and Bind and treated
// exactly as by the stock scheduler. Claims are not handled here.
package diskcapacity
