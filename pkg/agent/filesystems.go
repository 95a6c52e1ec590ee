package agent

import (
	"context"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/filesystem"
)

// classFileSystems makes and mounts file systems by the present settings of DiskClasses. The settings of a deleted
// class are not known: its volumes get the defaults.
type classFileSystems struct {
	maker   *filesystem.Maker
	classes func() []*diskv1alpha1.DiskClass
}

func (f classFileSystems) spec(class string) diskv1alpha1.DiskClassSpec {
	if c := classNamed(f.classes(), class); c != nil {
		return c.Spec
	}
	return diskv1alpha1.DiskClassSpec{}
}

// Make makes a file system on a volume whose content may be overwritten.
func (f classFileSystems) Make(ctx context.Context, class, fsType string, v disk.Volume) error {
	spec := f.spec(class)
	settings := filesystem.Settings{Features: spec.FSFeatures}
	// The options are for the class's own file system. A volume may request the other one.
	if own := spec.FSType; own == fsType || own == "" && fsType == diskv1alpha1.FSTypeExt4 {
		settings.Options = spec.MkfsOptions
	}
	return f.maker.Make(ctx, fsType, filesystem.Volume{Device: v.Device, UUID: v.Partition, Prezeroed: v.Prezeroed}, settings)
}

// MountOptions are those of the class that the file system understands.
func (f classFileSystems) MountOptions(class, fsType string) []string {
	return diskv1alpha1.MountOptionsFor(fsType, f.spec(class).MountOptions)
}
