package kubectl

import (
	"fmt"
	"strconv"

	"github.com/berthdev/berth/pkg/kubectl/inventory"
)

// space is the sum of several disks, as tables and documents have it.
type space struct {
	Disks     int   `json:"disks"`
	InService int   `json:"inService"`
	Size      int64 `json:"size"`
	Used      int64 `json:"used"`
	Free      int64 `json:"free"`
	Largest   int64 `json:"largest"`
	Pieces    int   `json:"pieces"`
	// Fragmentation is text, because a list has no floating-point numbers.
	Fragmentation string `json:"fragmentation,omitempty"`
	Volumes       int    `json:"volumes"`
}

func spaceOf(sum *inventory.Sum) space {
	s := space{
		Disks: sum.Disks, InService: sum.InService, Size: sum.Size, Used: sum.Used(), Free: sum.Free,
		Largest: sum.Largest, Pieces: sum.Pieces, Volumes: sum.Volumes,
	}
	if share, ok := sum.Fragmentation(); ok {
		s.Fragmentation = fmt.Sprintf("%.2f", share)
	}
	return s
}

// disksText is how many disks there are, and how many of them take no volumes.
func (s *space) disksText() string {
	if out := s.Disks - s.InService; out > 0 {
		return fmt.Sprintf("%d (%d out)", s.Disks, out)
	}
	return strconv.Itoa(s.Disks)
}
