package discovery

import (
	"context"
	"time"
)

// Attachment is a VolumeAttachment: a CSI driver attaches a volume to this node. A blank device may be that volume. So
// a class with adoption Automatic does not take one while an attachment is young.
type Attachment struct {
	Name, UID string
	Created   time.Time
}

// listAttachments lists the node's VolumeAttachments, once a rescan. The clocks of the API server and of the node may
// differ. So an attachment counts as at least as old as this node has known it.
func (s *rescanState) listAttachments(ctx context.Context) *YoungestAttachment {
	if s.youngest != nil {
		return s.youngest
	}
	s.youngest = &YoungestAttachment{}
	if s.inventory.options.Cluster == nil {
		return s.youngest
	}
	list, err := s.inventory.options.Cluster.Attachments(ctx)
	if err != nil {
		s.youngest.Err = err
		return s.youngest
	}
	seen := map[string]time.Time{}
	for _, a := range list {
		first, known := s.inventory.attachments[a.UID]
		if !known {
			first = s.now
		}
		seen[a.UID] = first
		age := max(s.now.Sub(first), s.now.Sub(a.Created))
		if s.youngest.Name == "" || age < s.youngest.Age || age == s.youngest.Age && a.Name < s.youngest.Name {
			s.youngest.Name, s.youngest.Age = a.Name, age
		}
	}
	s.inventory.attachments = seen
	return s.youngest
}
