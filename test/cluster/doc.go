// Package cluster runs a real Kubernetes cluster on this machine, for the demo and
// for the integration and end-to-end tests: etcd, kube-apiserver and, when asked
// for, kube-controller-manager, nodes with kubelet and containerd, loop devices as
// the nodes' disks, and Berth's own agent and scheduler.
//
// The programs are built from source into .build/bin of the repository and kept.
// Nothing is mocked. A control plane alone needs no privileges; nodes need root.
//
// Each node is a network namespace and a mount namespace of its own, so that every
// kubelet has the standard paths and ports. They share the machine's devices: what
// keeps an agent to its own disks is its --devices flag.
//
// Package host takes everything away again, also when the process that started the
// cluster died; this package only tries to end things in good order first.
package cluster
