// Command simulate measures how well policies of placement use the disks of a cluster
// under churn: volumes come, live and go for weeks, and every policy meets the same requests.
//
// It owns: the workloads (sizes and lifetimes, from published figures), the policies that
// peers use, and the measuring. It does not own Berth's placement: that is the code of
// pkg/placement, and the choice of the node is compared with that of pkg/ledger in the tests.
//
// # Terms
//
//   - Demand: the bytes of all volumes that were asked for and whose life is not over, whether a
//     policy placed them or not. A request comes whenever demand is below the target, so demand
//     is the same for all policies, and a policy's fill is the demand less what it refused.
//   - Pool: the bound. A disk without fragmentation, that takes whatever fits into its free bytes.
//   - Stranded: free bytes in extents that are smaller than the median request.
//
// The same seed gives the same output, to the byte (processors that round otherwise aside).
package main
