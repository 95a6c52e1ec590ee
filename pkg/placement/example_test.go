package placement_test

import (
	"errors"
	"fmt"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

func Example() {
	const gib = 1 << 30
	node := &placement.Node{Disks: []placement.Disk{{
		ID: "a", Class: "ssd",
		Free: extent.NewSet(extent.New(1*gib, 10*gib), extent.New(20*gib, 4*gib)),
	}}}
	requests := []placement.Request{
		{Class: "ssd", Size: 3 * gib},
		{Class: "ssd", Size: 9 * gib},
	}

	plan, err := placement.Plan(nil, node, requests)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, place := range plan {
		fmt.Printf("volume %d: disk %s, %d GiB from GiB %d\n", i, place.Disk, place.Extent.Len()/gib, place.Extent.Start/gib)
	}
	fmt.Println("score", placement.Score(placement.Merit(node, requests, plan)))

	_, err = placement.Plan(nil, node, []placement.Request{{Class: "ssd", Size: 16 * gib}})
	if noFit := (*placement.NoFit)(nil); errors.As(err, &noFit) {
		fmt.Println(noFit)
	}

	// Output:
	// volume 0: disk a, 3 GiB from GiB 20
	// volume 1: disk a, 9 GiB from GiB 1
	// score 55
	// largest free extent of class ssd is 10Gi, wants 16Gi
}
