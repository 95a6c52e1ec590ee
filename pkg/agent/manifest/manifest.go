// Package manifest writes the PersistentVolumes of a node again from its disks. It is for a cluster that has lost them,
// and to bind or release a volume that was retained. It only reads the disks, beside the agent that serves them, and
// needs no API server.
package manifest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/signature"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/request"
)

// Options say which disks are read, and what is not on the disks.
type Options struct {
	NodeName string
	// DevicePatterns are patterns for device paths. No other device is read.
	DevicePatterns []string
	// Sys is /sys/block.
	Sys fs.FS
	// StorageClass of the PersistentVolumes. A claim that binds one must name the same class. DiskClass is the class
	// of their disks. If they are empty, the names in the notes on the disk are used.
	StorageClass string
	DiskClass    string
	// Bind reserves each PersistentVolume for the claim for which it was made.
	Bind bool
	// ReclaimPolicy of the PersistentVolumes.
	ReclaimPolicy corev1.PersistentVolumeReclaimPolicy
}

// Validate returns an error that says what is missing.
func (o *Options) Validate() error {
	switch o.ReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete:
	default:
		return fmt.Errorf("reclaim policy is %.64q: it must be %s or %s", o.ReclaimPolicy, corev1.PersistentVolumeReclaimRetain, corev1.PersistentVolumeReclaimDelete)
	}
	if o.NodeName == "" {
		return errors.New("the name of the node is missing")
	}
	if len(o.DevicePatterns) == 0 {
		return errors.New("no devices are named, and none is read without: give the node's disks as --devices=/dev/nvme0n1,/dev/nvme1n1 " +
			"or --devices='/dev/nvme*', as the DiskClasses or status.devices of the NodeDiskCapacity name them")
	}
	return nil
}

// Volumes returns the PersistentVolumes of the volumes on the disks, sorted by name. Disks and volumes that cannot be
// described are in the error, and the others are still returned.
func Volumes(ctx context.Context, o Options) ([]*corev1.PersistentVolume, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	disks, err := readDisks(ctx, o)
	problems := []error{err}
	var volumes []*corev1.PersistentVolume
	on := map[string]string{}
	for _, d := range disks {
		for _, v := range d.Volumes {
			id, ok := diskv1alpha1.PersistentVolumeID(v.Name, v.Partition)
			if v.Ephemeral || !ok || v.Phase == disk.Wiping {
				// The next agent finishes a wipe that was begun.
				continue
			}
			if other, twice := on[id]; twice {
				problems = append(problems, fmt.Errorf("volume %s is on disk %s and on disk %s: one must be a copy, take it away", id, other, d.ID))
				volumes = slices.DeleteFunc(volumes, func(pv *corev1.PersistentVolume) bool { return pv.Name == id })
				continue
			}
			on[id] = d.ID
			if v.Incomplete != "" {
				problems = append(problems, fmt.Errorf("volume %s on disk %s (%s) is incomplete: %s; restore the entry of the partition table first", id, d.ID, d.Path, v.Incomplete))
				continue
			}
			fsType, err := findFileSystem(ctx, d, v)
			if err != nil {
				problems = append(problems, fmt.Errorf("volume %s on disk %s (%s): %w", id, d.ID, d.Path, err))
				continue
			}
			volumes = append(volumes, o.persistentVolume(d, v, id, fsType))
		}
	}
	slices.SortFunc(volumes, func(a, b *corev1.PersistentVolume) int { return cmp.Compare(a.Name, b.Name) })
	return volumes, errors.Join(problems...)
}

// readDisks reads the tables of the node's disks of ours.
func readDisks(ctx context.Context, o Options) ([]disk.Snapshot, error) {
	all, err := discovery.ListDevices(o.Sys, "/dev")
	if err != nil {
		return nil, err
	}
	named := discovery.FilterDevices(all, o.DevicePatterns)
	if len(named) == 0 {
		return nil, fmt.Errorf("no device of the node matches --devices=%s", strings.Join(o.DevicePatterns, ","))
	}
	var disks []disk.Snapshot
	var problems []error
	for _, device := range named {
		contents, err := disk.Inspect(ctx, device.Path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if contents.State != disk.Ours {
			continue
		}
		s, err := disk.Read(device.Path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if i := slices.IndexFunc(disks, func(other disk.Snapshot) bool { return other.ID == s.ID }); i >= 0 {
			return nil, fmt.Errorf("disk %s is on %s and on %s: one must be a copy, name the right one with --devices", s.ID, disks[i].Path, s.Path)
		}
		disks = append(disks, s)
	}
	return disks, errors.Join(problems...)
}

// persistentVolume is the PersistentVolume as the scheduler would have written it, but bound to no claim.
func (o *Options) persistentVolume(d disk.Snapshot, v disk.Volume, id, fsType string) *corev1.PersistentVolume {
	mode := corev1.PersistentVolumeFilesystem
	if v.Raw {
		mode = corev1.PersistentVolumeBlock
	}
	pvc := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &mode,
	}}
	class := &storagev1.StorageClass{ReclaimPolicy: &o.ReclaimPolicy}
	wanted := request.Volume{ID: id, FSType: fsType}
	pv := claim.NewVolume(pvc, class, wanted, o.NodeName, diskv1alpha1.Place{
		Disk: d.ID, Extent: diskv1alpha1.Extent{Start: v.Extent.Start, Length: v.Extent.Len()},
	}, piecesOf(d.ID, v)...)
	pv.TypeMeta = metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "PersistentVolume"}
	pv.Spec.ClaimRef = nil
	delete(pv.Spec.CSI.VolumeAttributes, diskv1alpha1.AttributeClass)
	// Options take precedence over the note. A note that cannot be read counts as none: the volume exists without it.
	note, _ := claim.ReadNote(v.Note)
	note.StorageClass = cmp.Or(o.StorageClass, note.StorageClass)
	note.DiskClass = cmp.Or(o.DiskClass, note.DiskClass)
	if !o.Bind {
		note.Namespace, note.Claim = "", ""
	}
	note.Apply(pv)
	return pv
}

// piecesOf are the places of the volume's further pieces.
func piecesOf(diskID string, v disk.Volume) []diskv1alpha1.Place {
	var places []diskv1alpha1.Place
	for _, p := range v.Pieces {
		places = append(places, diskv1alpha1.Place{Disk: diskID, Extent: diskv1alpha1.Extent{Start: p.Extent.Start, Length: p.Extent.Len()}})
	}
	return places
}

// findFileSystem reads which file system a volume has. It is empty if the volume was never handed out.
func findFileSystem(ctx context.Context, d disk.Snapshot, v disk.Volume) (string, error) {
	if v.Raw || v.Phase == disk.Reserved {
		return "", nil
	}
	var fsType string
	var err error
	if v.Device != "" {
		fsType, err = signature.FileSystem(ctx, v.Device, diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS)
	} else {
		fsType, err = signature.FileSystemAt(ctx, d.Path, v.Extent.Start, v.Extent.Len(), diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS)
	}
	if err != nil || fsType == "" || diskv1alpha1.ValidateFSType(fsType) != nil {
		return "", fmt.Errorf("no file system is recognized (%q): repair it first, or write its manifest by hand", fsType)
	}
	return fsType, nil
}

// Write writes the PersistentVolumes as YAML, one document each.
func Write(w io.Writer, volumes []*corev1.PersistentVolume) error {
	var out bytes.Buffer
	for _, pv := range volumes {
		encoded, err := json.Marshal(pv)
		if err != nil {
			return err
		}
		var fields map[string]any
		if err := json.Unmarshal(encoded, &fields); err != nil {
			return err
		}
		delete(fields, "status")
		if meta, ok := fields["metadata"].(map[string]any); ok {
			delete(meta, "creationTimestamp")
		}
		document, err := yaml.Marshal(fields)
		if err != nil {
			return err
		}
		out.WriteString("---\n")
		out.Write(document)
	}
	_, err := w.Write(out.Bytes())
	return err
}
