package discovery

import (
	"context"
	"time"
)

// Attachment is a volume that a driver attaches to this node.
type Attachment struct {
	Name, UID string
	Created   time.Time
}

// askAttachments lists the node's VolumeAttachments, once a rescan. The clocks of the API server and of the node may
// differ. So an attachment counts as at least as old as this node has known it.
func (s *scan) askAttachments(ctx context.Context) *Attached {
	if s.attached != nil {
		return s.attached
	}
	s.attached = &Attached{}
	if s.inventory.options.Cluster == nil {
		return s.attached
	}
	list, err := s.inventory.options.Cluster.Attachments(ctx)
	if err != nil {
		s.attached.Err = err
		return s.attached
	}
	seen := map[string]time.Time{}
	for _, a := range list {
		first, known := s.inventory.attachments[a.UID]
		if !known {
			first = s.now
		}
		seen[a.UID] = first
		age := max(s.now.Sub(first), s.now.Sub(a.Created))
		if s.attached.Name == "" || age < s.attached.Age || age == s.attached.Age && a.Name < s.attached.Name {
			s.attached.Name, s.attached.Age = a.Name, age
		}
	}
	s.inventory.attachments = seen
	return s.attached
}
