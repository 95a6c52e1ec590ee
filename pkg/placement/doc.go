// Package placement decides where on a node's disks the volumes of a pod go. It is
// arithmetic only: it reads no clock, no disk and no API, and the same input gives
// the same output, in the scheduler and on the node.
//
// It owns: which free extent takes which volume ([Plan]), by which [Policy], how well a
// node suits a pod ([Merit], [Score]), which of equal nodes is the first ([Order]), and why a pod does not fit ([NoFit]). It does not own: what is free
// (the scheduler's ledger and the agent's disks say so), the rounding of sizes (done
// where sizes are read), or what happens to a placement.
//
// # Terms
//
//   - Extent: a run of bytes of one disk. Free extents are multiples of 1 MiB, and so
//     are volumes; a volume lies inside one extent.
//   - Class: the name that a disk goes by. A disk has one class; a request wants one.
//   - Request: room for one volume. Requests with Apart share no disk among themselves.
//   - Plan: a place for every request of a pod, or for none of them.
//   - Leftover: what the plan leaves of the extents that it cuts into.
//
// # Best fit
//
// One volume goes to the start of the smallest free extent of its class that holds
// it; of several, to the one on the disk with the lowest ID, and there to the first.
// So large extents stay whole for large volumes, and an exact fit leaves nothing.
//
// With the policy [Spread] it goes to the disk with the most free bytes of those that have an
// extent for it, and there to the smallest such extent.
//
// Several volumes first go the same way one after the other, the largest first. That
// nearly always works, but not always. Free extents of 8 and 7, volumes of 5, 3, 4
// and 3 (GiB): the 5 goes to the 7 and leaves 2 there, the 4 and one 3 to the 8, and
// nothing is left for the other 3; yet 5+3 and 4+3 fill both extents exactly.
//
// # The exact search, and why it is exact
//
// When that fails, whatever the policy, the volumes are split into groups in every possible way, a
// group being what shares an extent. A disk has one class, so classes never compete,
// not even through Apart: each class is split by itself. For n volumes there are at
// most Bell(n) ways, which is 4140 for 8, whatever the number of extents, and each
// way is decided exactly, without further search:
//
//   - Without Apart, groups fit if and only if the largest group fits the largest
//     extent, the second the second, and so on. So only the n largest extents matter:
//     n groups at most, and whatever lies in a smaller extent could move to one of
//     these that is empty.
//   - With Apart, let a1 ≥ a2 ≥ … be the groups with an Apart volume (never two in a
//     group), and f1 ≥ f2 ≥ … the others. Let N(x) be the number of extents of at
//     least x. The others fit behind the Apart groups if and only if those take at
//     most N(fi) − i extents of at least fi, for each i. In other words: the m-th
//     largest extent taken must be at least am, and smaller than every fi with
//     N(fi) − i < m. Both limits fall as m rises, so the extents may as well be
//     chosen for each m separately, on different disks: a matching of at most n
//     groups with disks, found by augmenting paths. Only the n disks with the largest
//     extents matter (at most n disks are used, and a group on another disk could move
//     to one of these that is unused), and of each its n largest extents.
//
// Branches are cut as soon as the groups made so far do not fit (adding to them never
// helps), and of equal volumes or equal groups only one is tried. Before any of this,
// a node is refused by its largest extent, its n largest extents together, and its
// number of disks, so a node that is too full costs one pass over its extents.
//
// The search is exact for up to 8 volumes of a class. From 9 to 16 it stops after a
// fixed number of steps, and above 16 there is only best fit: then a pod may be
// refused although a placement exists, never the reverse.
//
// # Example
//
// A node has an ssd disk "a" with free extents of 10 GiB and 4 GiB, and a pod wants
// volumes of 3 GiB and 9 GiB of class ssd. The 9 GiB volume takes the start of the
// 10 GiB extent, the 3 GiB volume the start of the other. The leftover is 2 GiB.
// See Example in the tests for the code.
package placement
