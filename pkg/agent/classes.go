package agent

import (
	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// classList returns the DiskClasses from the watch.
func (a *agent) classList() []*diskv1alpha1.DiskClass {
	objects := a.classes.GetStore().List()
	classes := make([]*diskv1alpha1.DiskClass, 0, len(objects))
	for _, object := range objects {
		if class, ok := object.(*diskv1alpha1.DiskClass); ok {
			classes = append(classes, class)
		}
	}
	return classes
}

// classNamed returns the class with that name, or nil.
func classNamed(classes []*diskv1alpha1.DiskClass, name string) *diskv1alpha1.DiskClass {
	for _, c := range classes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (a *agent) defaultFSType(class string) string {
	if c := classNamed(a.classList(), class); c != nil && c.Spec.FSType != "" {
		return c.Spec.FSType
	}
	return diskv1alpha1.FSTypeExt4
}

func (a *agent) placement(class string) placement.Policy {
	if c := classNamed(a.classList(), class); c != nil {
		return request.PolicyOf(c.Spec.PlacementPolicy)
	}
	return placement.BestFit
}

// wiping returns how volumes of a class are wiped now, and false if there is no such class. For a policy that this
// agent does not know it is the default: the volume reads as zeros.
func (a *agent) wiping(class string) (disk.WipeSettings, bool) {
	c := classNamed(a.classList(), class)
	if c == nil {
		return disk.WipeSettings{}, false
	}
	settings := disk.WipeSettings{Policy: disk.WipeZero}
	switch c.Spec.WipePolicy {
	case diskv1alpha1.WipeOverwrite:
		settings.Policy = disk.WipeOverwrite
	case diskv1alpha1.WipeSecureDiscard:
		settings.Policy = disk.WipeSecureDiscard
	case diskv1alpha1.WipeNone:
		settings.Policy = disk.WipeNone
	}
	if c.Spec.WipeRate != nil {
		settings.Rate = max(c.Spec.WipeRate.Value(), 0)
	}
	return settings, true
}

// attachment returns how the volumes of a class are attached. Where the kernel has no device mapper, they are
// partitions: the node's condition says so.
func (a *agent) attachment(class string) disk.Attachment {
	c := classNamed(a.classList(), class)
	if c != nil && c.Spec.Attachment == diskv1alpha1.AttachDeviceMapper && disk.CheckMapper() == nil {
		return disk.DeviceMapper
	}
	return disk.Partition
}

// moveRate returns how many bytes a second the moves of a disk of the class may read and write; 0 without limit.
func (a *agent) moveRate(class string) int64 {
	if c := classNamed(a.classList(), class); c != nil && c.Spec.MoveRate != nil {
		return max(c.Spec.MoveRate.Value(), 0)
	}
	return 0
}
