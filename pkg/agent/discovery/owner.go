package discovery

import (
	"context"
	"fmt"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// Ownership says whether this node may serve a disk. The zero value means that it may.
type Ownership struct {
	// Reason is why it may not.
	Reason string
	// Retry is true if that may change.
	Retry bool
}

// ownership decides to which node a disk belongs. self is this node. named is the Node that has the owner's name now,
// or nil if there is none. err is set if that is not known.
//
// Machines that are copies of each other share a machine ID, and so do test nodes on one machine. So UIDs are compared
// first.
func ownership(owner, self disk.Owner, named *disk.Owner, err error) Ownership {
	switch {
	case owner.NodeUID == "" || owner.NodeUID == self.NodeUID:
		return Ownership{}
	case self.NodeUID == "":
		return Ownership{"the disk has an owner, and this node is not known until the kubelet registers it", true}
	case err != nil:
		return Ownership{fmt.Sprintf("the disk belongs to node %s as far as is known: %s", owner.NodeName, err.Error()), true}
	case named == nil || named.NodeUID == self.NodeUID:
		return Ownership{}
	case named.NodeUID == owner.NodeUID || owner.MachineID != "" && named.MachineID == owner.MachineID:
		return Ownership{fmt.Sprintf("the disk belongs to node %s, which exists: two nodes must not use one disk; "+
			"if it was moved for good, delete that Node", owner.NodeName), true}
	}
	return Ownership{}
}

// settled reports whether ownership can decide without the Node that has the owner's name.
func settled(owner, self disk.Owner) bool {
	return owner.NodeUID == "" || owner.NodeUID == self.NodeUID || self.NodeUID == ""
}

func (s *scan) askOwner(ctx context.Context, owner disk.Owner) Ownership {
	if settled(owner, s.owner) || s.inventory.options.Cluster == nil {
		return ownership(owner, s.owner, nil, nil)
	}
	named, err := s.inventory.options.Cluster.NodeNamed(ctx, owner.NodeName)
	return ownership(owner, s.owner, named, err)
}
