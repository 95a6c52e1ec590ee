package placement

import "cmp"

// Policy chooses among the places that a volume can have. It never decides whether the volumes of a pod fit: what fits
// under one policy fits under all.
type Policy uint8

const (
	// BestFit keeps large extents whole: a volume goes to the smallest extent that holds it.
	BestFit Policy = iota
	// Spread keeps disks equally full. A volume goes to the disk with the most free bytes of those that have an extent
	// for it. On that disk it takes the same extent as with BestFit.
	Spread
)

// LargestRequest is the index of the request that decides between nodes: the largest, which is the hardest to place.
// requests must not be empty.
func LargestRequest(requests []Request) int {
	leading := 0
	for i := range requests {
		a, b := &requests[i], &requests[leading]
		if cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(b.Class, a.Class)) > 0 {
			leading = i
		}
	}
	return leading
}

// NodeRank is a node's rank among nodes that are equally good, the lowest first. A fixed rank fills the same nodes
// first, so that free space on the others stays whole. It is a hash of the name, because names often contain the zone
// or the rack. With the names themselves, the first of a thousand equal nodes would all be in one zone. Nodes with
// equal hashes are ordered by name.
func NodeRank(nodeName string) uint64 {
	// FNV-1a, then the finalizer of MurmurHash3. Without the finalizer, names that differ only at the end get close
	// hashes.
	h := uint64(14695981039346656037)
	for i := range len(nodeName) {
		h = (h ^ uint64(nodeName[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
