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
// When that fails, whatever the policy, the search looks for the least use of the free extents. A disk has one class,
// so classes never compete, not even through Apart: each class is searched by itself.
//
// The extents stand in a row. A packing closes them from left to right: each volume goes behind the last one, or opens
// an extent further to the right. For each choice of volumes the search keeps how far a packing of them has to reach:
// the last extent, and how full it is. Of two reaches the smaller one is at least as good for whatever comes, because
// what can be added behind the larger one can be added behind the smaller one, too. So the least reach of a choice
// follows from those of the choices with one volume less, and a volume that does not fit behind the last one goes to
// the next extent that holds it.
//
//   - Volumes of one size are alike, so a choice is how many of each size. That is 2^8 choices for eight volumes
//     that differ, and 101 for a hundred of one size.
//   - With Apart, the extents of a disk stand together, and a reach says whether its last disk has an Apart volume:
//     the search keeps the least reach of both sorts. A reach that ends on an earlier disk is better than both.
//   - Only as many extents matter as there are volumes, the largest: whatever lies in a smaller one could move to one
//     of these that is empty. With Apart it is as many disks, those with the largest extents, and as many extents of
//     each.
//
// Before any of this, a node is refused by its largest extent and by its extents together, so a node that is too full
// costs one pass over its extents.
//
// # Where the search ends
//
// It is exact for up to 8 volumes of a class, and for as many as there are no more than 8192 choices. Beyond that a pod may be
// refused although a placement exists, never the reverse, and the refusal says so ([GaveUp]). Pods of more than 8
// volumes can be given a [Budget] for many plans together: when it is spent, the plans that are left give up, too.
//
// # Example
//
// A node has an ssd disk "a" with free extents of 10 GiB and 4 GiB, and a pod wants
// volumes of 3 GiB and 9 GiB of class ssd. The 9 GiB volume takes the start of the
// 10 GiB extent, the 3 GiB volume the start of the other. The leftover is 2 GiB.
// See Example in the tests for the code.
package placement
