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

// decideOwnership decides to which node a disk belongs. self is this node. named is the Node that has the owner's name
// now, or nil if there is none. err is set if that is not known.
//
// Machines that are copies of each other share a machine ID, and so do test nodes on one machine. So UIDs are compared
// first.
func decideOwnership(owner, self disk.Owner, named *disk.Owner, err error) Ownership {
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

// canDecideWithoutNode reports whether ownership can decide without the Node that has the owner's name.
func canDecideWithoutNode(owner, self disk.Owner) bool {
	return owner.NodeUID == "" || owner.NodeUID == self.NodeUID || self.NodeUID == ""
}

func (s *rescanState) findOwnership(ctx context.Context, owner disk.Owner) Ownership {
	if canDecideWithoutNode(owner, s.owner) || s.inventory.options.Cluster == nil {
		return decideOwnership(owner, s.owner, nil, nil)
	}
	named, err := s.inventory.options.Cluster.NodeNamed(ctx, owner.NodeName)
	return decideOwnership(owner, s.owner, named, err)
}
