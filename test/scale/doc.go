// Command scale measures the scheduler on large clusters, beside the stock one: `make bench-scale`.
// docs/understand/performance.md has its output.
//
// The control plane is real: etcd, kube-apiserver, kube-controller-manager for claims, and one scheduler at a time, in
// its own process. Nodes are objects, and this process simulates all their agents (package fleet). The workloads
// alternate. A run of a workload, called a turn, has two parts:
//
//   - A burst: pods are created while no scheduler runs, and then one is started. The time from the first binding to
//     the last counts. CPU time and API writes count from the first binding until some seconds after the last one, so
//     that later work is not left out.
//   - Arrivals, with the same scheduler: pods are created at a fixed rate, whether or not earlier ones are bound. The
//     time of each is from when it was due to be created until a watch shows it as bound.
package main
