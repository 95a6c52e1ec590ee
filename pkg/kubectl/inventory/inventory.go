// Package inventory reads NodeDiskCapacities for people: which disks, volumes, devices and wipes there are, what can be
// said of each, and in which order. All commands of kubectl-berth have their figures from here, so they agree.
//
// It does not read the API, and prints nothing.
package inventory

import (
	"cmp"
	"slices"
	"strings"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// Disk is one disk of a node.
type Disk struct {
	Node   string `json:"node"`
	Device string `json:"device"`
	ID     string `json:"id"`
	Class  string `json:"class,omitempty"`
	Model  string `json:"model,omitempty"`
	// State is that of the disk, or Shared if another node owns it, or NodeGone if its Node does not exist.
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
	Size    int64  `json:"size"`
	// Free is what new volumes can have. It is zero if the disk takes none.
	Free int64 `json:"free"`
	// Pieces is how many free extents there are, and Largest the length of the largest.
	Pieces  int   `json:"pieces"`
	Largest int64 `json:"largest"`
	// Volumes are those on the disk, by start. Each piece of a volume is one. VolumeCount counts volumes.
	Volumes []Volume `json:"volumes,omitempty"`

	// Extents are the free ones as published, whether the disk takes volumes or not.
	Extents []extent.Extent `json:"-"`
}

// States of a disk that the NodeDiskCapacity of its node does not say.
const (
	// StateShared is that of a disk that another node owns.
	StateShared = "Shared"
	// StateNodeGone is that of the disks of a node without a Node.
	StateNodeGone = "NodeGone"
)

// Kind is what a volume was made for.
type Kind string

const (
	// KindInline is a volume that ends with its pod.
	KindInline Kind = "inline"
	// KindClaim is the volume of a claim.
	KindClaim Kind = "claim"
	// KindUnknown is a partition whose volume the node does not know.
	KindUnknown Kind = "unknown"
)

// Volume is a volume on a disk.
type Volume struct {
	Node   string `json:"node"`
	Device string `json:"device"`
	Disk   string `json:"disk"`
	Class  string `json:"class,omitempty"`
	// Name is the CSI volume ID, or else the partition's GUID.
	Name      string `json:"name"`
	Partition string `json:"partition"`
	// Owner is namespace/name of the pod or claim.
	Owner string `json:"owner,omitempty"`
	// InPod is the name of an inline volume in its pod, if that is known.
	InPod string `json:"inPod,omitempty"`
	Kind  Kind   `json:"volumeKind"`
	// State is the phase, or Orphan.
	State  string `json:"state"`
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	// Piece is the number of a further piece of a volume. The first piece has none. Total is the length of all pieces of a
	// volume that has several.
	Piece int32 `json:"piece,omitempty"`
	Total int64 `json:"total,omitempty"`
	// GrowsTo is up to which length a claim's volume can grow in place, and MovesTo up to which one by a move on its disk.
	// They are zero where it cannot, and of a further piece.
	GrowsTo       int64      `json:"growsTo,omitempty"`
	MovesTo       int64      `json:"movesTo,omitempty"`
	OrphanedSince *time.Time `json:"orphanedSince,omitempty"`
	// WipePolicy and Wiped are set while the volume is wiped, Copied while it is copied here.
	WipePolicy string `json:"wipePolicy,omitempty"`
	Wiped      int64  `json:"wiped,omitempty"`
	Copied     int64  `json:"copied,omitempty"`
}

// StateOrphan is the state of a volume without an owner.
const StateOrphan = "Orphan"

// Device is a whole block device of a node.
type Device struct {
	Node                string `json:"node"`
	diskv1alpha1.Device `json:",inline"`
}

// Context is what a NodeDiskCapacity does not say of its own node.
type Context struct {
	// NodeGone is true when there is no Node.
	NodeGone bool
	// Withheld reports whether another node owns a disk.
	Withheld func(disk string) bool
	// InPod has the names that inline volumes have in their pods, by volume ID.
	InPod map[string]string
}

// Disks reads the disks of a node, by device.
func Disks(ndc *diskv1alpha1.NodeDiskCapacity, c Context) []Disk {
	disks := make([]Disk, 0, len(ndc.Status.Disks))
	for i := range ndc.Status.Disks {
		disks = append(disks, diskOf(ndc.Name, &ndc.Status.Disks[i], c))
	}
	slices.SortStableFunc(disks, func(a, b Disk) int { return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID)) })
	return disks
}

func diskOf(node string, in *diskv1alpha1.Disk, c Context) Disk {
	d := Disk{
		Node: node, Device: in.Device, ID: in.ID, Class: in.Class, Model: in.Model,
		State: string(in.State), Message: in.Message, Size: in.Size,
	}
	switch {
	case c.NodeGone:
		d.State, d.Message = StateNodeGone, "there is no Node of this name"
	case c.Withheld != nil && c.Withheld(in.ID):
		d.State, d.Message = StateShared, "another node publishes the disk, too, and owns it"
	}
	for _, e := range in.Free {
		d.Extents = append(d.Extents, extent.New(e.Start, e.Length))
	}
	if d.InService() {
		for _, e := range d.Extents {
			d.Free, d.Largest = placement.AddCapped(d.Free, e.Len()), max(d.Largest, e.Len())
		}
		d.Pieces = len(d.Extents)
	}
	for i := range in.Allocations {
		d.Volumes = append(d.Volumes, d.volume(&in.Allocations[i], c))
	}
	d.addGrowth()
	slices.SortFunc(d.Volumes, func(a, b Volume) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Name, b.Name)) })
	return d
}

// Path is node/device.
func (d *Disk) Path() string { return d.Node + "/" + d.Device }

// InService reports whether the disk takes new volumes.
func (d *Disk) InService() bool { return d.State == string(diskv1alpha1.DiskReady) && d.Class != "" }

// Used is what new volumes cannot have: the size less what is free.
func (d *Disk) Used() int64 { return d.Size - d.Free }

// Fragmentation is the part of the free space that is outside of the largest free extent. It is false without free
// space.
func (d *Disk) Fragmentation() (float64, bool) { return fragmentation(d.Free, d.Largest) }

// Sum is the sum of several disks. Size, and what follows from it, is that of the disks in service, as in the status of
// a DiskClass.
type Sum struct {
	Disks, InService   int
	Size, Free         int64
	Pieces, Volumes    int
	Largest, sumOfBest int64
}

// Add adds a disk.
func (s *Sum) Add(d *Disk) {
	s.Disks, s.Volumes = s.Disks+1, s.Volumes+d.VolumeCount()
	if !d.InService() {
		return
	}
	s.InService++
	s.Size, s.Free = placement.AddCapped(s.Size, d.Size), placement.AddCapped(s.Free, d.Free)
	s.sumOfBest = placement.AddCapped(s.sumOfBest, d.Largest)
	s.Pieces, s.Largest = s.Pieces+d.Pieces, max(s.Largest, d.Largest)
}

// SumOf adds up disks.
func SumOf(disks []Disk) Sum {
	var s Sum
	for i := range disks {
		s.Add(&disks[i])
	}
	return s
}

// Used is the size less what is free.
func (s *Sum) Used() int64 { return s.Size - s.Free }

// Fragmentation is the part of the free space that is outside of the largest free extent of its disk. The ledger's
// metrics have the same figure.
func (s *Sum) Fragmentation() (float64, bool) { return fragmentation(s.Free, s.sumOfBest) }

func fragmentation(free, best int64) (float64, bool) {
	if free <= 0 {
		return 0, false
	}
	return 1 - float64(best)/float64(free), true
}

func (d *Disk) volume(a *diskv1alpha1.Allocation, c Context) Volume {
	v := Volume{
		Node: d.Node, Device: d.Device, Disk: d.ID, Class: d.Class, Name: a.Volume, Partition: a.Partition, Owner: a.Owner,
		InPod: c.InPod[a.Volume], Kind: kindOf(a.Volume), State: string(a.Phase), Start: a.Start, Length: a.Length, Piece: a.Piece, Copied: a.Copied,
	}
	if v.Name == "" {
		v.Name = a.Partition
	}
	if a.OrphanedSince != nil {
		since := a.OrphanedSince.UTC()
		v.OrphanedSince = &since
		if a.Phase != diskv1alpha1.PhaseWiping {
			v.State = StateOrphan
		}
	}
	if a.Wiping != nil {
		v.WipePolicy, v.Wiped = string(a.Wiping.Policy), a.Wiping.Wiped
	}
	return v
}

// VolumeCount is how many volumes the disk holds. Their further pieces are not counted.
func (d *Disk) VolumeCount() int { return len(d.FirstPieces()) }

// FirstPieces are the volumes without their further pieces.
func (d *Disk) FirstPieces() []*Volume {
	var first []*Volume
	for i := range d.Volumes {
		if d.Volumes[i].Piece == 0 {
			first = append(first, &d.Volumes[i])
		}
	}
	return first
}

// Whole is the length of all pieces.
func (v *Volume) Whole() int64 { return max(v.Total, v.Length) }

// addGrowth adds the total of the volumes of several pieces, and how long the volumes of claims can get.
func (d *Disk) addGrowth() {
	pieces := map[string][]*Volume{}
	for i := range d.Volumes {
		v := &d.Volumes[i]
		pieces[v.Name] = append(pieces[v.Name], v)
	}
	for _, v := range d.FirstPieces() {
		last, total := v, v.Length
		for _, p := range pieces[v.Name] {
			if p.Piece > 0 {
				total += p.Length
			}
			if p.Piece > last.Piece {
				last = p
			}
		}
		if last != v {
			for _, p := range pieces[v.Name] {
				p.Total = total
			}
		}
		if v.Kind == KindClaim && d.State == string(diskv1alpha1.DiskReady) && v.State == string(diskv1alpha1.PhaseFormatted) {
			v.GrowsTo, v.MovesTo = d.growth(last.Start+last.Length, total)
		}
	}
}

// growth is how long a volume of that length can get behind the end of its last piece, and by a move to another extent
// of the disk.
func (d *Disk) growth(end, length int64) (inPlace, byMove int64) {
	for _, e := range d.Extents {
		if e.Start == end {
			inPlace = length + e.Len()
		}
		if e.Len() > length {
			byMove = max(byMove, e.Len())
		}
	}
	if byMove <= inPlace {
		byMove = 0
	}
	return inPlace, byMove
}

// inlinePrefix begins the IDs that the kubelet gives to inline volumes, claimPrefix those of claims.
const (
	inlinePrefix = "csi-"
	claimPrefix  = "pvc-"
)

func kindOf(volume string) Kind {
	switch {
	case strings.HasPrefix(volume, inlinePrefix):
		return KindInline
	case strings.HasPrefix(volume, claimPrefix):
		return KindClaim
	}
	return KindUnknown
}

// Devices reads the devices of a node.
func Devices(ndc *diskv1alpha1.NodeDiskCapacity) []Device {
	devices := make([]Device, 0, len(ndc.Status.Devices))
	for i := range ndc.Status.Devices {
		devices = append(devices, Device{Node: ndc.Name, Device: ndc.Status.Devices[i]})
	}
	return devices
}

// Path is node/device.
func (d *Device) Path() string { return d.Node + "/" + d.Name }

// Identity names the device by what survives a reboot.
func (d *Device) Identity() string {
	switch {
	case d.WWN != "":
		return "wwn " + d.WWN
	case d.Serial != "":
		return "serial " + d.Serial
	}
	return d.ByID
}
