package discovery

import (
	"path"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Match returns the class that selects the device on a node with the given labels,
// or nil. Of several it is the one whose name comes first, so that the order in which
// classes arrive changes nothing.
func Match(classes []*diskv1alpha1.DiskClass, nodeLabels map[string]string, d Device) *diskv1alpha1.DiskClass {
	var first *diskv1alpha1.DiskClass
	for _, class := range classes {
		if first != nil && class.Name >= first.Name {
			continue
		}
		if selectsNode(class.Spec.NodeSelector, nodeLabels) && selectsDevice(&class.Spec.Devices, d) {
			first = class
		}
	}
	return first
}

func selectsNode(selector *metav1.LabelSelector, nodeLabels map[string]string) bool {
	if selector == nil {
		return true
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	// A selector that cannot be understood selects nothing: the opposite would hand over disks.
	return err == nil && s.Matches(labels.Set(nodeLabels))
}

func selectsDevice(s *diskv1alpha1.DeviceSelector, d Device) bool {
	// The API server refuses a selector without criteria; if one gets here, it selects nothing.
	if s.Rotational == nil && len(s.Models) == 0 && len(s.Paths) == 0 && s.MinSize == nil && s.MaxSize == nil {
		return false
	}
	if d.Explicit && len(s.Paths) == 0 {
		return false
	}
	return (s.Rotational == nil || *s.Rotational == d.Rotational) &&
		(len(s.Models) == 0 || matchesModel(s.Models, d.Model)) &&
		(len(s.Paths) == 0 || d.matchesPath(s.Paths)) &&
		(s.MinSize == nil || compare(s.MinSize, d.Size) <= 0) &&
		(s.MaxSize == nil || compare(s.MaxSize, d.Size) >= 0)
}

func matchesModel(patterns []string, model string) bool {
	for _, pattern := range patterns {
		if ok, err := path.Match(pattern, model); err == nil && ok {
			return true
		}
	}
	return false
}

func compare(q *resource.Quantity, size int64) int { return q.CmpInt64(size) }
