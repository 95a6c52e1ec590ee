// Command scale measures the scheduler on large clusters, beside the stock one: `make bench-scale`.
// docs/performance.md has what it prints.
//
// The control plane is real: etcd, kube-apiserver, kube-controller-manager for claims, and one
// scheduler at a time as a process of its own. Nodes are objects, and this process plays all
// their agents (package fleet). Workloads take turns. A turn is
//
//   - a burst: pods are created while no scheduler runs; one is started, and the time from the
//     first binding to the last counts. CPU time and API writes count from the first binding
//     until some seconds after the last one, so that what follows is not left out;
//   - arrivals, with the same scheduler: pods are created at a fixed rate, whether or not those
//     before them are bound. The time of each is from when it was due to be created until a
//     watch shows it as bound.
package main
