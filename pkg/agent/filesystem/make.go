package filesystem

import (
	"context"
	"fmt"
	"os"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/signature"
)

// mkfsTimeout bounds mkfs on a disk that hangs.
const mkfsTimeout = 10 * time.Minute

// Volume is a device that gets a file system. Its content may be overwritten.
type Volume struct {
	Device string
	// UUID is the file system's UUID. It is the partition's GUID, so that both identify the volume.
	UUID string
	// Prezeroed is true when all its bytes are known to be zeros.
	Prezeroed bool
}

// Settings are a class's settings for new file systems.
type Settings struct {
	// Features are FSFeatures515 if they are empty.
	Features diskv1alpha1.FSFeatures
	// Options are further options of mkfs.
	Options []string
}

// Maker makes file systems with the programs of this machine.
type Maker struct {
	// conf has mke2fsConf. The programs inherit it as an open file.
	conf *os.File
	// unusable are the errors of the kinds of file systems that cannot be made on this machine.
	unusable map[featureSet]error
	// xfsOff are the options with which mkfs.xfs leaves out features that are newer than all sets.
	xfsOff []string
}

// NewMaker tries what the programs of this machine can make.
func NewMaker(ctx context.Context) (*Maker, error) {
	conf, err := memoryFile("mke2fs.conf", mke2fsConf, 0)
	if err != nil {
		return nil, err
	}
	m := &Maker{conf: conf, unusable: map[featureSet]error{}}
	if err := m.probe(ctx); err != nil {
		return nil, fmt.Errorf("cannot try the programs that make file systems: %w", err)
	}
	return m, nil
}

// Make makes a file system. It neither discards nor clears more than it must: the extent was wiped before it was free.
// Old labels are erased first unless all bytes are zeros. Otherwise blkid, and with it the next mount, could find the
// former content.
func (m *Maker) Make(ctx context.Context, fsType string, v Volume, s Settings) error {
	if s.Features == "" {
		s.Features = diskv1alpha1.FSFeatures515
	}
	if err := m.unusable[featureSet{fsType, s.Features}]; err != nil {
		return fmt.Errorf("the programs of this node cannot make %s with fsFeatures %s: choose others in the DiskClass: %w", fsType, s.Features, err)
	}
	if err := diskv1alpha1.ValidateMkfsOptions(fsType, s.Options); err != nil {
		return fmt.Errorf("the DiskClass must be changed: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, mkfsTimeout)
	defer cancel()
	if !v.Prezeroed {
		if err := signature.Erase(ctx, v.Device); err != nil {
			return fmt.Errorf("cannot erase old signatures on %s: %w", v.Device, err)
		}
	}
	program, arguments := m.command(fsType, v, s)
	if _, err := runWith(ctx, m.inheritedFiles(), program, append(arguments, v.Device)...); err != nil {
		return fmt.Errorf("cannot make a file system on %s: %w", v.Device, err)
	}
	return nil
}

// inheritedFiles are the files that mkfs inherits: mke2fs.conf, and the image that probe formats.
func (m *Maker) inheritedFiles(more ...*os.File) inheritance {
	return inheritance{files: append([]*os.File{m.conf}, more...), environment: []string{"MKE2FS_CONFIG=" + inheritedPath(0)}}
}
