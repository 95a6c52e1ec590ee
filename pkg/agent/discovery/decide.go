package discovery

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// DefaultGrace is newDeviceGrace of a class that has none.
const DefaultGrace = 10 * time.Minute

// Facts are all that a decision about one device that is not open depends on.
type Facts struct {
	Device Device
	// Classes are all DiskClasses. NodeLabels are the node's labels.
	Classes    []*diskv1alpha1.DiskClass
	NodeLabels map[string]string
	// Approvals are those that name the device.
	Approvals []Approval
	// MissingDisk is the ID of a missing disk that was on the device. It is empty if there is none.
	MissingDisk string
	// LiesOnOurs is the device of the disk of ours on which the device lies. It is empty if there is none.
	LiesOnOurs string
	// MultipathDevice is the multipath map that has the device as a path. It is empty if there is none.
	MultipathDevice string

	// Contents and ReadError are the result of reading the device. Both are nil before it was read.
	Contents  *disk.Contents
	ReadError error
	// CopyReason says of which device a disk of ours is a copy. It is empty if it is none.
	CopyReason string
	// Ownership says whether this node may serve a disk of ours. It is nil before it is known.
	Ownership *Ownership

	// New is true if the device appeared while the agent ran. Waited is how long it has been unopened since.
	New    bool
	Waited time.Duration
	// Youngest are the VolumeAttachments of the node. It is nil before they were listed.
	Youngest *YoungestAttachment
	// NodeRegistered is true if the node has a Node object, to which a new disk can belong.
	NodeRegistered bool
}

// Approval is an entry of spec.adopt that names the device.
type Approval struct {
	Class, Fingerprint string
	// By is the property by which it names the device, Names the devices that it names.
	By    string
	Names []string
}

// YoungestAttachment is the youngest VolumeAttachment of the node.
type YoungestAttachment struct {
	// Name is its name. It is empty if there is none.
	Name string
	Age  time.Duration
	// Err is the error if they could not be listed.
	Err error
}

// Action is the next action for a device.
type Action int

const (
	// ActionLeave does nothing to the device.
	ActionLeave Action = iota
	// ActionRead has the device read. Then a new decision is made with its contents.
	ActionRead
	// ActionFindOwner has the owner of a disk of ours looked up. Then a new decision is made.
	ActionFindOwner
	// ActionListAttachments has the node's VolumeAttachments listed. Then a new decision is made.
	ActionListAttachments
	// ActionOpen takes a disk of ours into service.
	ActionOpen
	// ActionInitialize makes a blank device a disk of ours.
	ActionInitialize
)

// Verdict is a decision about a device. It never changes.
type Verdict struct {
	Action Action
	State  diskv1alpha1.DeviceState
	// Class is the class that has the device or would take it. It is empty if none selects it.
	Class string
	// Disk is the ID of the disk of ours on the device.
	Disk string
	// Reasons are all reasons why the device is not taken.
	Reasons []string
	// Fingerprint is for approvals. Only candidates have one.
	Fingerprint string
	// Denied is true for a candidate whose approval is not valid.
	Denied bool
	// Retry is true if the reasons may disappear without an event.
	Retry bool
	// RecheckAfter is the time after which the decision may change. It is 0 if it does not change with time.
	RecheckAfter time.Duration
}

// Refused reports whether a class selects the device and there is a reason against it.
func (v Verdict) Refused() bool {
	return v.Class != "" && len(v.Reasons) > 0 && (v.State != diskv1alpha1.DeviceCandidate || v.Denied)
}

// Decide decides about a device that is not open. It does no I/O and depends on nothing but the facts.
//
// Invariants:
//  1. A device is read only if a class selects it, or a missing disk was on it.
//  2. A device is initialized only if it is blank and a class selects it. Either an approval repeats its fingerprint,
//     or the class says Automatic.
//  3. A device that lies on a disk of ours, or is a path or a part of another device, is left alone.
//  4. A network volume of a cloud is left alone, whatever a class or an approval says.
func Decide(f Facts) Verdict {
	s := selectClasses(f.Classes, f.NodeLabels, f.Device)
	v := Verdict{State: diskv1alpha1.DeviceExcluded, Disk: f.MissingDisk}
	class := f.chooseClass(s)
	if class != nil {
		v.Class = class.Name
	}
	v.collectVetoes(f)
	switch {
	case class == nil && f.MissingDisk == "":
		v.State = diskv1alpha1.DeviceExcluded
		v.Reasons = append(v.Reasons, s.objections...)
		return v
	case len(v.Reasons) > 0:
		return v
	case f.ReadError != nil:
		v.State, v.Reasons, v.Retry = diskv1alpha1.DeviceFailed, []string{f.ReadError.Error()}, true
		return v
	case f.Contents == nil:
		v.Action = ActionRead
		return v
	}
	v.Disk = ""
	switch f.Contents.State {
	case disk.Ours:
		v.decideOurs(f, s)
	case disk.Blank:
		v.decideBlank(f, s, class)
	case disk.Busy:
		v.State, v.Reasons, v.Retry = diskv1alpha1.DeviceBusy, f.Contents.Reasons, true
	default:
		v.State, v.Reasons = diskv1alpha1.DeviceForeign, f.Contents.Reasons
	}
	return v
}

// chooseClass returns the class that has the device: one for which it is approved, else the first.
func (f Facts) chooseClass(s selection) *diskv1alpha1.DiskClass {
	for _, approval := range f.Approvals {
		if class := s.class(approval.Class); class != nil && len(approval.Names) == 1 {
			return class
		}
	}
	if len(s.classes) > 0 {
		return s.classes[0]
	}
	return nil
}

// collectVetoes collects the reasons against the device that do not depend on its class or content.
func (v *Verdict) collectVetoes(f Facts) {
	d := f.Device
	against := func(state diskv1alpha1.DeviceState, format string, arguments ...any) {
		v.State = state
		v.Reasons = append(v.Reasons, fmt.Sprintf(format, arguments...))
	}
	if len(d.Unreadable) > 0 {
		v.Retry = true
		for _, reason := range d.Unreadable {
			against(diskv1alpha1.DeviceFailed, "%s", reason)
		}
	}
	if d.ReadOnly {
		against(diskv1alpha1.DeviceExcluded, "the device is read-only")
	}
	if d.Zoned == "host-managed" {
		against(diskv1alpha1.DeviceExcluded, "the device is zoned (host-managed) and takes no writes in any order")
	}
	if what := findVolumeModel(d, cloudVolumeModels); what != "" {
		against(diskv1alpha1.DeviceExcluded, "its model %q is that of %s, which its cloud can attach to another node: network volumes are never disks", d.Model, what)
	}
	for _, holder := range d.Holders {
		against(diskv1alpha1.DeviceBusy, "the device is part of %s", holder)
	}
	if f.MultipathDevice != "" {
		against(diskv1alpha1.DeviceBusy, "the device is a path of the multipath device %s: select that one", f.MultipathDevice)
	}
	if d.Loop != nil && d.Loop.Block {
		against(diskv1alpha1.DeviceExcluded, "the loop device shows a block device (%s)", d.Loop.File)
	}
	if f.LiesOnOurs != "" {
		against(diskv1alpha1.DeviceExcluded, "the device lies on %s, a disk of Berth's", f.LiesOnOurs)
	}
}

// decideOurs decides about a disk of ours.
func (v *Verdict) decideOurs(f Facts, s selection) {
	v.Disk = f.Contents.ID
	switch {
	case v.Class == "" && f.MissingDisk != f.Contents.ID:
		v.Reasons = append([]string{fmt.Sprintf("it holds disk %s, which was not on this node before", f.Contents.ID)}, s.objections...)
	case f.CopyReason != "":
		v.State, v.Disk, v.Reasons = diskv1alpha1.DeviceForeign, "", []string{f.CopyReason}
	case f.Ownership == nil:
		v.Action = ActionFindOwner
	case f.Ownership.Reason != "":
		v.State, v.Reasons, v.Retry = diskv1alpha1.DeviceForeign, []string{f.Ownership.Reason}, f.Ownership.Retry
	default:
		v.Action, v.State = ActionOpen, diskv1alpha1.DeviceInUse
	}
}

// decideBlank decides about a blank device.
func (v *Verdict) decideBlank(f Facts, s selection, class *diskv1alpha1.DiskClass) {
	if class == nil {
		// The disk that was on the device has been wiped.
		v.Reasons = s.objections
		return
	}
	v.State, v.Fingerprint = diskv1alpha1.DeviceCandidate, fingerprint(f.Device)
	approved, why := f.isApproved(s, v.Fingerprint)
	automatic := class.Spec.Adoption == diskv1alpha1.AdoptAutomatic
	switch {
	case !approved && automatic:
		v.checkAutomatic(f, gracePeriod(class))
	case !approved && len(why) > 0:
		v.Reasons, v.Denied = why, true
	case !approved && !f.Device.isIdentified():
		v.Reasons = []string{"it waits for approval, but has no WWN, serial or link below /dev/disk by which one could name it: " +
			"name its path in a class with adoption Automatic"}
		v.Fingerprint = ""
	case !approved:
		v.Reasons = []string{fmt.Sprintf("it waits for approval: name it in spec.adopt, with class %s and this fingerprint", class.Name)}
	}
	if len(v.Reasons) > 0 || v.Action == ActionListAttachments {
		return
	}
	if !f.NodeRegistered {
		v.Reasons, v.Retry = []string{"it waits for the kubelet to register the Node"}, true
		return
	}
	v.Action = ActionInitialize
}

// isApproved reports whether an approval allows the device. If not, it returns why those that name it do not.
func (f Facts) isApproved(s selection, fingerprint string) (bool, []string) {
	var why []string
	for _, a := range f.Approvals {
		switch {
		case len(a.Names) > 1:
			why = append(why, fmt.Sprintf("the approval by %s names several devices (%s): name it by another property", a.By, strings.Join(a.Names, ", ")))
		case s.class(a.Class) == nil:
			why = append(why, fmt.Sprintf("it is approved for class %s, which does not select it", a.Class))
		case a.Fingerprint != fingerprint:
			why = append(why, "the device has changed since it was approved: look at it, and approve it with its fingerprint of now")
		default:
			return true, nil
		}
	}
	return false, why
}

// checkAutomatic collects the reasons against taking a blank device without approval.
func (v *Verdict) checkAutomatic(f Facts, grace time.Duration) {
	switch {
	case grace <= 0:
	case f.New && f.Waited < grace:
		v.Reasons = []string{fmt.Sprintf("it appeared while the agent ran: it is taken when it has been blank and unopened for %s", grace)}
		v.RecheckAfter = grace - f.Waited
	case f.Youngest == nil:
		v.Action = ActionListAttachments
	case f.Youngest.Err != nil:
		v.Reasons, v.Retry = []string{"it waits for a list of VolumeAttachments: " + f.Youngest.Err.Error()}, true
	case f.Youngest.Name != "" && f.Youngest.Age < grace:
		v.Reasons = []string{fmt.Sprintf("VolumeAttachment %s of this node is younger than %s, and the device may be its volume", f.Youngest.Name, grace)}
		v.RecheckAfter = grace - f.Youngest.Age
	}
}

// inGracePeriod reports whether the device appeared so recently that its class does not take it yet.
func (f Facts) inGracePeriod() bool {
	class := f.chooseClass(selectClasses(f.Classes, f.NodeLabels, f.Device))
	return f.New && class != nil && f.Waited < gracePeriod(class)
}

// gracePeriod is how long the class makes new devices wait.
func gracePeriod(class *diskv1alpha1.DiskClass) time.Duration {
	if class.Spec.NewDeviceGrace == nil {
		return DefaultGrace
	}
	return class.Spec.NewDeviceGrace.Duration
}

// fingerprint is a hash of a blank device's identity, and of its being blank. It does not contain the kernel's name,
// which changes with a reboot.
func fingerprint(d Device) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{
		string(disk.Blank), d.WWN, d.Serial, d.ByID, d.Model, string(d.Transport),
		strconv.FormatInt(d.Size, 10), strconv.FormatInt(d.SectorSize, 10),
	}, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// approvalsFor are the approvals that name a device, each with all devices that it names.
func approvalsFor(d Device, all []Device, adopt []diskv1alpha1.DeviceApproval) []Approval {
	var approvals []Approval
	for _, a := range adopt {
		if !approvalNames(a, d) {
			continue
		}
		approval := Approval{Class: a.Class, Fingerprint: a.Fingerprint}
		switch {
		case a.WWN != "":
			approval.By = "wwn " + a.WWN
		case a.Serial != "":
			approval.By = "serial " + a.Serial
		default:
			approval.By = "byID " + a.ByID
		}
		for _, other := range all {
			if approvalNames(a, other) {
				approval.Names = append(approval.Names, other.Name)
			}
		}
		approvals = append(approvals, approval)
	}
	return approvals
}

// approvalNames reports whether the approval names the device. Of several links any may be used.
func approvalNames(a diskv1alpha1.DeviceApproval, d Device) bool {
	switch {
	case a.WWN != "":
		return a.WWN == d.WWN
	case a.Serial != "":
		return a.Serial == d.Serial
	}
	return a.ByID != "" && (a.ByID == d.ByID || slices.Contains(d.Links, a.ByID))
}

// findOurDeviceBelow returns the name of the device of ours on which the device lies, or nothing. What is on a volume
// is written by the volume's user.
func findOurDeviceBelow(d Device, all []Device, ours map[string]bool) string {
	byName := map[string]Device{}
	for _, other := range all {
		byName[other.Name] = other
	}
	var find func(d Device, left int) string
	find = func(d Device, left int) string {
		for _, below := range d.Below {
			if ours[below] {
				return below
			}
			if left > 0 {
				if on := find(byName[below], left-1); on != "" {
					return on
				}
			}
		}
		return ""
	}
	return find(d, len(all))
}

// findMultipathDevice returns the multipath device of which the device is a path, by its WWN, or nothing. A map exists
// before the kernel lists its paths as held.
func findMultipathDevice(d Device, all []Device) string {
	if d.WWN == "" {
		return ""
	}
	for _, other := range all {
		if other.Name == d.Name {
			continue
		}
		if uuid, is := strings.CutPrefix(other.Map.UUID, "mpath-"); is && isMapOfWWN(d.WWN, uuid) {
			return other.Map.Name
		}
	}
	return ""
}

// isMapOfWWN reports whether multipath gives a map of devices with that WWN that UUID. It writes a digit for the type
// of a SCSI name, and an NVMe name unchanged.
func isMapOfWWN(wwn, uuid string) bool {
	plain := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, strings.ToLower(s))
	}
	if plain(wwn) == plain(uuid) {
		return true
	}
	for _, form := range []struct{ ours, theirs string }{{"naa.", "3"}, {"eui.", "2"}, {"t10.", "1"}} {
		if rest, is := strings.CutPrefix(wwn, form.ours); is && plain(form.theirs+rest) == plain(uuid) {
			return true
		}
	}
	return false
}
