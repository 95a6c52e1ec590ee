package csi

import (
	"errors"
	"fmt"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// access is how a volume is used: a CSI volume capability, checked.
type access struct {
	// block is true for a raw block device, which has neither file system nor flags.
	block bool
	// fsType is ext4, xfs or empty.
	fsType string
	// flags are mount options.
	flags []string
	// readOnly: no pod may write. single: only one target may be published.
	readOnly, singleWriter bool
}

// accessOf reads the capability. The error names the field that is not possible.
func accessOf(c *csispec.VolumeCapability) (access, error) {
	var a access
	switch {
	case c == nil:
		return a, errors.New("volume_capability is missing")
	case c.GetBlock() != nil:
		a.block = true
	case c.GetMount() == nil:
		return a, errors.New("volume_capability names neither mount nor block")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		a.singleWriter = true
	case csispec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		a.readOnly = true
	default:
		return a, fmt.Errorf("volume_capability: access mode %v is not supported: the volume is on a disk of one node", mode)
	}
	if a.block {
		return a, nil
	}
	m := c.GetMount()
	a.fsType, a.flags = m.FsType, m.MountFlags
	switch {
	case m.VolumeMountGroup != "":
		return a, errors.New("volume_capability: volume_mount_group is set, but the group of files is not a mount option of ext4 and xfs")
	case slices.Contains(a.flags, ""):
		return a, errors.New("volume_capability: mount_flags has an empty one")
	}
	if err := diskv1alpha1.ValidateFSType(a.fsType); err != nil {
		return a, fmt.Errorf("volume_capability: %w", err)
	}
	return a, nil
}

// accessesOf reads all capabilities of one volume.
func accessesOf(capabilities []*csispec.VolumeCapability) (access, error) {
	if len(capabilities) == 0 {
		return access{}, errors.New("volume_capabilities is missing")
	}
	var all access
	for i, c := range capabilities {
		a, err := accessOf(c)
		switch {
		case err != nil:
			return access{}, fmt.Errorf("volume_capabilities[%d]: %w", i, err)
		case i > 0 && a.block != all.block:
			return access{}, errors.New("volume_capabilities has both mount and block: a volume is either")
		case a.fsType != "" && all.fsType != "" && a.fsType != all.fsType:
			return access{}, fmt.Errorf("volume_capabilities has both fs_type %s and %s: a volume has one file system", all.fsType, a.fsType)
		case a.fsType != "":
			all.fsType = a.fsType
		}
		all.block = a.block
	}
	return all, nil
}

// modeOf names what a volume with that volumeMode has.
func modeOf(block bool) string {
	if block {
		return "no file system (volumeMode Block)"
	}
	return "a file system (volumeMode Filesystem)"
}
