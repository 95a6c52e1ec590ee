package placement

import "cmp"

// Policy says which of the places that there are a volume gets. It never decides whether
// the volumes of a pod fit: what fits under one policy fits under all.
type Policy uint8

const (
	// BestFit keeps large extents whole: a volume goes to the smallest extent that holds it.
	BestFit Policy = iota
	// Spread keeps disks equally full: a volume goes to the disk with the most free bytes
	// of those that have an extent for it, and there to the extent that BestFit takes.
	Spread
)

// Leading is the index of the request that decides between nodes: the largest, since it is
// the hardest to place. There must be one.
func Leading(requests []Request) int {
	leading := 0
	for i := range requests {
		a, b := &requests[i], &requests[leading]
		if cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(b.Class, a.Class)) > 0 {
			leading = i
		}
	}
	return leading
}

// Order is a node's place among nodes that are equally good, the lowest first: always to take
// the same leaves the others alone, where free space grows together. It is a hash
// of the name, because names often contain the zone or the rack, and the first of a thousand
// equal nodes shall not all be of one. Equal hashes are ordered by the name itself.
func Order(nodeName string) uint64 {
	// FNV-1a, then the finalizer of MurmurHash3: names that differ only at the end lie
	// close together without it.
	h := uint64(14695981039346656037)
	for i := range len(nodeName) {
		h = (h ^ uint64(nodeName[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
