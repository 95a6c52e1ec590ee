// Package placement decides where on a node's disks the volumes of a pod go. It is arithmetic only: it reads no clock,
// no disk and no API. The same input gives the same output, in the scheduler and on the node.
//
// It owns:
//   - which free extent takes which volume ([Plan]), and by which [Policy];
//   - which volumes of a disk move, so that its largest free extent grows ([Compact]);
//   - how well a node suits a pod ([Merit], [Score]), and which of equal nodes comes first ([NodeRank]);
//   - why a pod does not fit ([NoFit]).
//
// It does not own what is free: the scheduler's ledger and the agent's disks provide that. It does not round sizes: the
// packages that read sizes do. It does not carry out a placement.
//
// # Terms
//
//   - Extent: a run of bytes of one disk. Free extents are multiples of 1 MiB, and so are volumes. A volume lies inside
//     one extent, unless its request allows pieces.
//   - Class: the name of a group of disks. A disk has one class, and a request names one.
//   - Request: requests room for one volume. Requests with Apart share no disk among themselves.
//   - Plan: a place for every request of a pod, or for none of them.
//   - Leftover: the bytes that remain of the extents into which the plan puts volumes.
//
// # Best fit
//
// One volume goes to the start of the smallest free extent of its class that can hold it. Of several such extents it
// takes the one on the disk with the lowest ID, and there the first. So large extents stay whole for large volumes, and
// an exact fit leaves nothing.
//
// With the policy [Spread] a volume goes to the disk with the most free bytes of those that have an extent for it. On
// that disk it takes the smallest such extent.
//
// Several volumes first go the same way one after the other, the largest first. That nearly always works, but not
// always. An example has free extents of 8 and 7 GiB, and volumes of 5, 4, 3 and 3 GiB. The 5 goes to the 7 and leaves
// 2 there. The 4 and one 3 go to the 8, and nothing is left for the other 3. Yet 5+3 and 4+3 fill both extents exactly.
//
// # The exact search, and why it is exact
//
// If that fails, the exact search runs, whatever the policy. It looks for the plan that uses the least of the free
// extents. A disk has one class, so classes never compete, not even through Apart: each class is searched by itself.
//
// The extents are ordered in a row. A packing closes them from left to right: each volume goes behind the last one, or
// opens an extent further to the right. For each choice of volumes the search keeps the reach of its best packing: the
// last extent, and how full it is. The smaller of two reaches is always at least as good. What can be added behind the
// larger one can be added behind the smaller one, too. So the least reach of a choice follows from the reaches of the
// choices with one volume less. A volume that does not fit behind the last one goes to the next extent that can hold
// it.
//
//   - Volumes of one size are alike, so a choice is how many of each size. That is 2^8 choices for eight volumes that
//     differ, and 101 for a hundred of one size.
//   - With Apart, the extents of a disk are next to each other. The search keeps two least reaches, with and without an
//     Apart volume on the last disk. A reach that ends on an earlier disk is better than both.
//   - Only the largest extents matter, as many as there are volumes. A volume in a smaller extent could move to one of
//     these that is empty. With Apart the search keeps as many disks, those with the largest extents, and as many
//     extents of each.
//
// Before the search, a node is refused by the size of its largest extent and by the total of its extents. So a node
// that is too full costs one pass over its extents.
//
// # Pieces
//
// A request with MaxPieces may have several extents of one disk, on a node that takes pieces. It gets them only if the
// requests of its class do not fit inside one extent each. Then the requests without leave for pieces are placed first,
// and searched exactly. Each of the others gets one extent if one holds it. Else it gets the fewest pieces that hold it
// on any disk: the largest extents whole, and for the rest the smallest extent that holds it.
//
// For one request that is exact: no choice of as many extents of a disk has more bytes than the largest ones. Several
// requests may be refused although a choice with smaller pieces exists. The cause of such a refusal is [GaveUp].
//
// # Where the search ends
//
// The search is exact for up to 8 volumes of a class, and for more volumes as long as there are at most 8192 choices.
// Beyond that a pod may be refused although a placement exists, never the reverse. The cause of such a refusal is
// [GaveUp]. Pods of more than 8 volumes can be given a [Budget] for many plans together. When it is spent, the
// remaining plans give up, too.
//
// # Example
//
// A node has an ssd disk "a" with free extents of 10 GiB and 4 GiB. A pod requests volumes of 3 GiB and 9 GiB of class
// ssd. The 9 GiB volume takes the start of the 10 GiB extent, the 3 GiB volume the start of the other. The leftover is
// 2 GiB. See Example in the tests for the code.
package placement
