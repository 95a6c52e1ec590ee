// Command simulate measures how well placement policies use the disks of a cluster under churn. Volumes are made and
// deleted for weeks, and every policy gets the same requests.
//
// It owns the workloads (sizes and lifetimes, from published figures), the policies of similar projects, and the
// measuring. It does not own Berth's placement: that is the code of pkg/placement. The tests compare the choice of the
// node with that of pkg/ledger.
//
// It also owns plans that Berth does not carry out: volumes that are placed in pieces, grow in pieces, or move to
// another disk to grow.
//
// # Terms
//
//   - Demand: the bytes of all requested volumes whose life is not over, whether a policy placed them or not. A request
//     comes whenever demand is below the target. So demand is the same for all policies, and a policy's fill is the
//     demand less what it refused.
//   - Pool: the bound. A disk without fragmentation, which takes every volume that is not larger than its free bytes.
//   - Stranded: free bytes in extents that are smaller than the median request.
//   - Piece: one of several extents of a volume. Only planned volumes have more than one.
//   - Way: how a volume grows, as a sequence of steps. The bound of all ways is that free bytes anywhere on the node
//     suffice, as in a volume group of LVM.
//
// The same seed gives the same output, to the byte, on processors with the same rounding.
package main
