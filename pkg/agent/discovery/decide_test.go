package discovery

import (
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/units"
)

// exampleDrive is a blank device with an identity.
var exampleDrive = Device{
	Name: "sda", Path: "/dev/sda", Identity: Identity{"naa.1", "S1", "/dev/disk/by-id/wwn-1"}, Model: "M", Transport: diskv1alpha1.TransportSATA,
	Size: 1 << 40, SectorSize: 512,
}

func classOf(name string, adoption diskv1alpha1.Adoption, grace time.Duration) *diskv1alpha1.DiskClass {
	no := false
	return &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{
		Adoption: adoption, NewDeviceGrace: &metav1.Duration{Duration: grace}, Devices: diskv1alpha1.DeviceSelector{Rotational: &no},
	}}
}

// TestApproval asserts that a blank device is initialized only by an approval that names no other device. The approval
// must have a class that selects it, and its present fingerprint.
func TestApproval(t *testing.T) {
	changed := exampleDrive
	changed.Size++
	good := Approval{Class: "ssd", Fingerprint: fingerprint(exampleDrive), By: "wwn naa.1", Names: []string{"sda"}}
	with := func(change func(*Approval)) []Approval {
		a := good
		change(&a)
		return []Approval{a}
	}
	for name, tc := range map[string]struct {
		device    Device
		approvals []Approval
		act       Action
		denied    bool
		reason    string
	}{
		"none":              {exampleDrive, nil, ActionLeave, false, "waits for approval: name it in spec.adopt, with class ssd"},
		"good":              {exampleDrive, []Approval{good}, ActionInitialize, false, ""},
		"one of two":        {exampleDrive, append(with(func(a *Approval) { a.Fingerprint = "0" }), good), ActionInitialize, false, ""},
		"wrong fingerprint": {exampleDrive, with(func(a *Approval) { a.Fingerprint = "0123456789abcdef" }), ActionLeave, true, "has changed since it was approved"},
		"changed device":    {changed, []Approval{good}, ActionLeave, true, "has changed since it was approved"},
		"two devices":       {exampleDrive, with(func(a *Approval) { a.Names = []string{"sda", "sdb"} }), ActionLeave, true, "names several devices (sda, sdb)"},
		"another class":     {exampleDrive, with(func(a *Approval) { a.Class = "hdd" }), ActionLeave, true, "approved for class hdd, which does not select it"},
		"no identity":       {Device{Name: "vdb", Path: "/dev/vdb"}, nil, ActionLeave, false, "no WWN, serial or link"},
	} {
		f := Facts{
			Device: tc.device, Classes: []*diskv1alpha1.DiskClass{classOf("ssd", diskv1alpha1.AdoptApprove, time.Hour)},
			Approvals: tc.approvals, Contents: &disk.Contents{State: disk.Blank}, NodeRegistered: true, New: true,
		}
		v := Decide(f)
		if v.Action != tc.act || v.Denied != tc.denied || v.Refused() != tc.denied || !strings.Contains(strings.Join(v.Reasons, ";"), tc.reason) {
			t.Errorf("%s: %+v", name, v)
		}
		if v.State != diskv1alpha1.DeviceCandidate || v.Class != "ssd" || (v.Fingerprint == "") != (name == "no identity") {
			t.Errorf("%s: %+v", name, v)
		}
		for _, state := range []disk.State{disk.Foreign, disk.Busy} {
			f.Contents = &disk.Contents{State: state, Reasons: []string{"something"}}
			if v := Decide(f); v.Action != ActionLeave || string(v.State) != string(state) || v.Reasons[0] != "something" || v.Fingerprint != "" || v.Retry != (state == disk.Busy) {
				t.Errorf("%s, but the device is %s: %+v", name, state, v)
			}
		}
	}
	f := Facts{Device: exampleDrive, Classes: []*diskv1alpha1.DiskClass{classOf("ssd", diskv1alpha1.AdoptApprove, 0)}, Approvals: []Approval{good}, Contents: &disk.Contents{State: disk.Blank}}
	if v := Decide(f); v.Action != ActionLeave || !v.Retry || !strings.Contains(v.Reasons[0], "register the Node") {
		t.Errorf("without a Node: %+v", v)
	}
}

// TestFingerprint asserts that every identifying property of a device changes its fingerprint, and that the kernel's
// name does not.
func TestFingerprint(t *testing.T) {
	seen := map[string]bool{}
	for i, change := range []func(*Device){
		func(*Device) {},
		func(d *Device) { d.WWN = "x" },
		func(d *Device) { d.Serial = "x" },
		func(d *Device) { d.ByID = "x" },
		func(d *Device) { d.Model = "x" },
		func(d *Device) { d.Transport = "usb" },
		func(d *Device) { d.Size++ },
		func(d *Device) { d.SectorSize++ },
	} {
		d := exampleDrive
		change(&d)
		if f := fingerprint(d); len(f) != 16 || seen[f] {
			t.Errorf("change %d: fingerprint %s", i, f)
		} else {
			seen[f] = true
		}
	}
	d := exampleDrive
	d.Name, d.Path, d.Number, d.Sequence = "sdz", "/dev/sdz", "8:1", "9"
	if !seen[fingerprint(d)] {
		t.Error("a new name changes the fingerprint")
	}
}

// TestAutomatic asserts what a blank device waits for before it is taken without approval.
func TestAutomatic(t *testing.T) {
	const grace = 10 * time.Minute
	young := &YoungestAttachment{Name: "csi-1", Age: grace - time.Second}
	for name, tc := range map[string]struct {
		grace    time.Duration
		isNew    bool
		waited   time.Duration
		attached *YoungestAttachment
		act      Action
		again    time.Duration
		retry    bool
		reason   string
	}{
		"new":                       {grace, true, 0, nil, ActionLeave, grace, false, "blank and unopened for 10m0s"},
		"new, nearly long enough":   {grace, true, grace - 1, nil, ActionLeave, 1, false, "blank and unopened for 10m0s"},
		"new, long enough":          {grace, true, grace, nil, ActionListAttachments, 0, false, ""},
		"there from the start":      {grace, false, 0, nil, ActionListAttachments, 0, false, ""},
		"nothing attached":          {grace, true, grace, &YoungestAttachment{}, ActionInitialize, 0, false, ""},
		"something young attached":  {grace, true, grace, young, ActionLeave, time.Second, false, "VolumeAttachment csi-1 of this node is younger"},
		"from the start, and young": {grace, false, 0, young, ActionLeave, time.Second, false, "VolumeAttachment csi-1 of this node is younger"},
		"something old attached":    {grace, true, grace, &YoungestAttachment{Name: "csi-1", Age: grace}, ActionInitialize, 0, false, ""},
		"no list":                   {grace, true, grace, &YoungestAttachment{Err: errors.New("forbidden")}, ActionLeave, 0, true, "forbidden"},
		"no grace":                  {0, true, 0, nil, ActionInitialize, 0, false, ""},
	} {
		v := Decide(Facts{
			Device: exampleDrive, Classes: []*diskv1alpha1.DiskClass{classOf("ssd", diskv1alpha1.AdoptAutomatic, tc.grace)},
			Contents: &disk.Contents{State: disk.Blank}, New: tc.isNew, Waited: tc.waited, Youngest: tc.attached, NodeRegistered: true,
		})
		if v.Action != tc.act || v.RecheckAfter != tc.again || v.Retry != tc.retry || !strings.Contains(strings.Join(v.Reasons, ";"), tc.reason) || v.Refused() {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// An approval is enough, and a class without a grace has the default.
	class := classOf("ssd", diskv1alpha1.AdoptAutomatic, 0)
	class.Spec.NewDeviceGrace = nil
	f := Facts{Device: exampleDrive, Classes: []*diskv1alpha1.DiskClass{class}, Contents: &disk.Contents{State: disk.Blank}, New: true, NodeRegistered: true}
	if v := Decide(f); v.RecheckAfter != DefaultGrace {
		t.Errorf("without newDeviceGrace: %+v", v)
	}
	f.Approvals = []Approval{{Class: "ssd", Fingerprint: fingerprint(exampleDrive), Names: []string{"sda"}}}
	if v := Decide(f); v.Action != ActionInitialize {
		t.Errorf("approved: %+v", v)
	}
}

// TestRead asserts that a device is read only if a class selects it or a missing disk was on it.
func TestRead(t *testing.T) {
	classes := []*diskv1alpha1.DiskClass{classOf("ssd", diskv1alpha1.AdoptApprove, 0)}
	hdd := exampleDrive
	hdd.Rotational = true
	if v := Decide(Facts{Device: hdd, Classes: classes}); v.Action != ActionLeave || v.State != diskv1alpha1.DeviceExcluded {
		t.Errorf("not selected: %+v", v)
	}
	if v := Decide(Facts{Device: hdd, Classes: classes, MissingDisk: "a"}); v.Action != ActionRead || v.Disk != "a" || v.Class != "" {
		t.Errorf("a missing disk was on it: %+v", v)
	}
	lies := Facts{Device: exampleDrive, Classes: classes, MissingDisk: "a", LiesOnOurs: "sdb"}
	if v := Decide(lies); v.Action != ActionLeave || !v.Refused() {
		t.Errorf("lies on a disk of ours: %+v", v)
	}
	if v := Decide(Facts{Device: exampleDrive, Classes: classes, ReadError: errors.New("hangs"), MissingDisk: "a"}); v.State != diskv1alpha1.DeviceFailed || !v.Retry || v.Disk != "a" || v.Reasons[0] != "hangs" {
		t.Errorf("cannot be read: %+v", v)
	}
	ours := func(id string) *disk.Contents { return &disk.Contents{State: disk.Ours, ID: id} }
	for name, tc := range map[string]struct {
		facts  Facts
		act    Action
		state  diskv1alpha1.DeviceState
		reason string
	}{
		"of a class":              {Facts{Device: exampleDrive, Contents: ours("b")}, ActionFindOwner, "", ""},
		"of no other node":        {Facts{Device: exampleDrive, Contents: ours("b"), Ownership: &Ownership{}}, ActionOpen, diskv1alpha1.DeviceInUse, ""},
		"of another node":         {Facts{Device: exampleDrive, Contents: ours("b"), Ownership: &Ownership{"belongs to n2", true}}, ActionLeave, diskv1alpha1.DeviceForeign, "belongs to n2"},
		"a copy":                  {Facts{Device: exampleDrive, Contents: ours("b"), CopyReason: "a copy of b"}, ActionLeave, diskv1alpha1.DeviceForeign, "a copy of b"},
		"known, without class":    {Facts{Device: hdd, MissingDisk: "b", Contents: ours("b"), Ownership: &Ownership{}}, ActionOpen, diskv1alpha1.DeviceInUse, ""},
		"another, without class":  {Facts{Device: hdd, MissingDisk: "a", Contents: ours("b"), Ownership: &Ownership{}}, ActionLeave, diskv1alpha1.DeviceExcluded, "was not on this node before"},
		"wiped, and not selected": {Facts{Device: hdd, MissingDisk: "a", Contents: &disk.Contents{State: disk.Blank}, NodeRegistered: true}, ActionLeave, diskv1alpha1.DeviceExcluded, "class ssd"},
	} {
		tc.facts.Classes = classes
		v := Decide(tc.facts)
		if v.Action != tc.act || tc.state != "" && v.State != tc.state || !strings.Contains(strings.Join(v.Reasons, ";"), tc.reason) {
			t.Errorf("%s: %+v", name, v)
		}
		if name == "a copy" && v.Disk != "" {
			t.Error("a copy has the identity of its original")
		}
	}
}

// TestApprovalsFor asserts which devices an approval names, and that an approval of several devices is recognized.
func TestApprovalsFor(t *testing.T) {
	twin := exampleDrive
	twin.Name, twin.WWN, twin.ByID, twin.Links = "sdb", "naa.2", "/dev/disk/by-id/wwn-2", []string{"/dev/disk/by-id/ata-2", "/dev/disk/by-id/wwn-2"}
	all := []Device{exampleDrive, twin, {Name: "loop0"}}
	for name, tc := range map[string]struct {
		approval diskv1alpha1.DeviceApproval
		names    string
	}{
		"wwn":          {diskv1alpha1.DeviceApproval{WWN: "naa.2"}, "sdb"},
		"serial":       {diskv1alpha1.DeviceApproval{Serial: "S1"}, "sda,sdb"},
		"link":         {diskv1alpha1.DeviceApproval{ByID: "/dev/disk/by-id/wwn-1"}, "sda"},
		"another link": {diskv1alpha1.DeviceApproval{ByID: "/dev/disk/by-id/ata-2"}, "sdb"},
		"nothing":      {diskv1alpha1.DeviceApproval{}, ""},
		"unknown":      {diskv1alpha1.DeviceApproval{Serial: "S"}, ""},
	} {
		var names []string
		for _, d := range all {
			for _, a := range approvalsFor(d, all, []diskv1alpha1.DeviceApproval{tc.approval}) {
				names = append(names, d.Name)
				if strings.Join(a.Names, ",") != tc.names || a.By == "" {
					t.Errorf("%s: %+v", name, a)
				}
			}
		}
		if strings.Join(names, ",") != tc.names {
			t.Errorf("%s names %v, want %s", name, names, tc.names)
		}
	}
}

// TestOwnership asserts to which node a disk belongs.
func TestOwnership(t *testing.T) {
	self := disk.Owner{NodeUID: "u1", NodeName: "n1", MachineID: "m"}
	other := disk.Owner{NodeUID: "u2", NodeName: "n2", MachineID: "m"}
	for name, tc := range map[string]struct {
		owner, self disk.Owner
		named       *disk.Owner
		err         error
		refused     bool
	}{
		"ours":                              {self, self, nil, nil, false},
		"without owner":                     {disk.Owner{}, self, nil, nil, false},
		"of a node that is gone":            {other, self, nil, nil, false},
		"of a node that is there":           {other, self, &disk.Owner{NodeUID: "u2", NodeName: "n2", MachineID: "m2"}, nil, true},
		"of a machine that is there":        {other, self, &disk.Owner{NodeUID: "u3", NodeName: "n2", MachineID: "m"}, nil, true},
		"of a name that is there":           {other, self, &disk.Owner{NodeUID: "u3", NodeName: "n2", MachineID: "m3"}, nil, false},
		"of a name, no machine IDs":         {disk.Owner{NodeUID: "u2", NodeName: "n2"}, self, &disk.Owner{NodeUID: "u3", NodeName: "n2"}, nil, false},
		"of this node, made again":          {disk.Owner{NodeUID: "u0", NodeName: "n1", MachineID: "m"}, self, &self, nil, false},
		"no answer":                         {other, self, nil, errors.New("down"), true},
		"this node is not registered":       {other, disk.Owner{}, nil, nil, true},
		"without owner, not registered":     {disk.Owner{}, disk.Owner{}, nil, nil, false},
		"same machine ID, other node, gone": {disk.Owner{NodeUID: "u9", NodeName: "n9", MachineID: "m"}, self, nil, nil, false},
	} {
		got := decideOwnership(tc.owner, tc.self, tc.named, tc.err)
		if (got.Reason != "") != tc.refused || got.Retry != tc.refused {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestRefusedCopies asserts which of several devices with one disk is used.
func TestRefusedCopies(t *testing.T) {
	a, b, c := Device{Name: "sda", Identity: Identity{WWN: "1"}}, Device{Name: "sdb", Identity: Identity{WWN: "2"}}, Device{Name: "sdc", Identity: Identity{WWN: "1"}}
	plain := Device{Name: "loop0"}
	for name, tc := range map[string]struct {
		holders []copyHolder
		before  *Device
		refused string
		says    string
	}{
		"one":                              {[]copyHolder{{device: a}}, nil, "", ""},
		"one in service":                   {[]copyHolder{{device: a}, {device: b, open: true}}, &a, "sda", "in service on sdb"},
		"one known":                        {[]copyHolder{{device: a}, {device: b}}, &b, "sda", "there before, on sdb"},
		"one that cannot be read":          {[]copyHolder{{device: a}, {device: b, unread: true}}, nil, "sda", "cannot be read now, on sdb"},
		"none known":                       {[]copyHolder{{device: a}, {device: b}}, nil, "sda sdb", "on several devices"},
		"known by name only":               {[]copyHolder{{device: plain}, {device: Device{Name: "loop1"}}}, &plain, "loop0 loop1", "on several devices"},
		"two paths":                        {[]copyHolder{{device: c}, {device: a}}, nil, "sdc", "another path"},
		"two paths and a copy":             {[]copyHolder{{device: c}, {device: a}, {device: b}}, nil, "sda sdb sdc", "on several devices"},
		"two known paths and a copy":       {[]copyHolder{{device: c}, {device: a}, {device: b}}, &a, "sdb sdc", ""},
		"a path in service and other path": {[]copyHolder{{device: c, open: true}, {device: a}}, nil, "sda", "another path"},
	} {
		refused := refusedCopies("id", tc.holders, tc.before)
		var names []string
		for _, d := range []string{"loop0", "loop1", "sda", "sdb", "sdc"} {
			if reason, is := refused[d]; is {
				names = append(names, d)
				if !strings.Contains(reason, tc.says) {
					t.Errorf("%s: %s is refused because %q", name, d, reason)
				}
			}
		}
		if strings.Join(names, " ") != tc.refused {
			t.Errorf("%s: refused are %v, want %s", name, refused, tc.refused)
		}
	}
}

// TestFindOurDeviceBelow asserts that a device on a disk of ours is recognized through any number of devices.
func TestFindOurDeviceBelow(t *testing.T) {
	all := []Device{
		{Name: "sda"}, {Name: "sdb"}, {Name: "dm-0", Below: []string{"sda"}}, {Name: "dm-1", Below: []string{"dm-0", "sdb"}}, {Name: "loop0", Below: []string{"dm-1"}},
		{Name: "dm-2", Below: []string{"sdb", "gone"}}, {Name: "dm-3", Below: []string{"dm-3"}},
	}
	ours := map[string]bool{"sda": true}
	depth := stackDepths(all)
	for i, want := range []string{"", "", "sda", "sda", "sda", "", ""} {
		if got := findOurDeviceBelow(all[i], all, ours); got != want {
			t.Errorf("%s lies on %q, want %q", all[i].Name, got, want)
		}
	}
	for name, want := range map[string]int{"sda": 0, "dm-0": 1, "dm-1": 2, "loop0": 3, "dm-2": 1, "dm-3": 0} {
		if depth[name] != want {
			t.Errorf("%s has depth %d, want %d", name, depth[name], want)
		}
	}
}

// TestFindMultipathDevice asserts that a path is recognized by its map's UUID, in multipath's format.
func TestFindMultipathDevice(t *testing.T) {
	for wwn, uuid := range map[string]string{
		"naa.600140500001": "mpath-3600140500001",
		"eui.0025385b11b2": "mpath-eui.0025385b11b2",
		"eui.00253":        "mpath-200253",
		"t10.ATA Disk S1":  "mpath-1ATA_Disk_S1",
		"uuid.1111-2222":   "mpath-uuid.1111-2222",
	} {
		d := Device{Name: "sda", Identity: Identity{WWN: wwn}}
		all := []Device{d, {Name: "dm-0", Map: Map{"mpatha", uuid}}}
		if got := findMultipathDevice(d, all); got != "mpatha" {
			t.Errorf("%s is a path of %q", wwn, got)
		}
		other := Device{Name: "sdb", Identity: Identity{WWN: wwn + "0"}}
		if got := findMultipathDevice(other, all); got != "" {
			t.Errorf("%s is a path of %q", other.WWN, got)
		}
		all[1].Map.UUID = strings.Replace(uuid, "mpath", "LVM", 1)
		if got := findMultipathDevice(d, all); got != "" {
			t.Errorf("%s is a path of a map that is no multipath: %q", wwn, got)
		}
	}
	if got := findMultipathDevice(Device{Name: "sda"}, []Device{{Name: "dm-0", Map: Map{"x", "mpath-"}}}); got != "" {
		t.Errorf("a device without WWN is a path of %q", got)
	}
}

// TestIsSameDevice asserts by which properties a device is recognized.
func TestIsSameDevice(t *testing.T) {
	plain := Device{Name: "loop0", Size: 1, Model: ""}
	for name, tc := range map[string]struct {
		now, before Device
		want        bool
	}{
		"same wwn, other name":          {Device{Name: "sdb", Identity: Identity{WWN: "1"}}, Device{Name: "sda", Identity: Identity{WWN: "1"}}, true},
		"other wwn, same name":          {Device{Name: "sda", Identity: Identity{WWN: "1"}}, Device{Name: "sda", Identity: Identity{WWN: "2"}}, false},
		"same serial":                   {Device{Identity: Identity{Serial: "1"}, Model: "M"}, Device{Identity: Identity{Serial: "1"}, Model: "M"}, true},
		"same serial of another model":  {Device{Identity: Identity{Serial: "1"}, Model: "M"}, Device{Identity: Identity{Serial: "1"}, Model: "N"}, false},
		"same link":                     {Device{Identity: Identity{ByID: "1"}}, Device{Identity: Identity{ByID: "1"}, Name: "x"}, true},
		"no identity, same name":        {plain, plain, true},
		"no identity, other size":       {plain, Device{Name: "loop0", Size: 2}, false},
		"one that has lost its own":     {Device{Name: "sda"}, Device{Name: "sda", Identity: Identity{WWN: "1"}}, false},
		"published by an older version": {Device{Name: "sda", Identity: Identity{WWN: "1"}}, Device{Name: "sda"}, true},
	} {
		if got := tc.now.isSameDevice(tc.before); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNewDevices asserts which devices are new, and that using one restarts its time.
func TestNewDevices(t *testing.T) {
	device := func(name, activity string) Device { return Device{Name: name, Number: name, Activity: activity} }
	start := time.Unix(1000, 0)
	at := func(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }
	var n newDevices
	n.update([]Device{device("sda", "1")}, nil, start)
	if isNew, _ := n.waitTime(device("sda", "1"), at(5)); isNew {
		t.Error("a device that was there from the start is new")
	}
	both := []Device{device("sda", "1"), device("sdb", "1")}
	n.update(both, nil, at(1))
	n.recordRead(device("sdb", "1"), true, "2")
	if !n.isBlank(device("sdb", "")) || n.isBlank(device("sda", "")) {
		t.Error("what was read is not remembered")
	}
	both[1].Activity = "2"
	n.update(both, nil, at(5))
	if isNew, waited := n.waitTime(both[1], at(5)); !isNew || waited != 4*time.Minute || !n.isBlank(both[1]) {
		t.Errorf("new %v, waited %s, blank %v", isNew, waited, n.isBlank(both[1]))
	}
	both[1].Activity = "3"
	n.update(both, nil, at(6))
	if isNew, waited := n.waitTime(both[1], at(7)); !isNew || waited != time.Minute || n.isBlank(both[1]) {
		t.Errorf("after use: new %v, waited %s, blank %v", isNew, waited, n.isBlank(both[1]))
	}
	// Another medium under the same name, and one that was removed and came back.
	swapped := both[1]
	swapped.Sequence = "2"
	n.update([]Device{swapped}, nil, at(10))
	if isNew, waited := n.waitTime(swapped, at(11)); !isNew || waited != time.Minute {
		t.Errorf("swapped: new %v, waited %s", isNew, waited)
	}
	n.update(both, nil, at(20))
	if isNew, _ := n.waitTime(both[0], at(20)); !isNew {
		t.Error("a device that came back is not new")
	}
	var kernel newDevices
	kernel.update([]Device{device("sda", "8 0 100 50")}, nil, start)
	kernel.update([]Device{device("sda", "8 0 3 0")}, nil, at(1))
	if isNew, _ := kernel.waitTime(device("sda", ""), at(2)); !isNew {
		t.Error("a medium whose counters begin again is not new")
	}
	// A device that the former agent had not published is new to the next one.
	var restarted newDevices
	restarted.update(both, []Device{{Name: "sda"}}, start)
	if isNew, _ := restarted.waitTime(both[0], start); isNew {
		t.Error("a published device is new after a restart")
	}
	if isNew, _ := restarted.waitTime(both[1], start); !isNew {
		t.Error("a device that was not published is not new after a restart")
	}
	// A device whose activity the kernel does not show is read every time.
	restarted.recordRead(both[0], true, "")
	if restarted.isBlank(both[0]) {
		t.Error("a device without counters counts as unused")
	}
}

// TestInGracePeriod asserts that a device is inspected without an exclusive open only as long as it is new.
func TestInGracePeriod(t *testing.T) {
	no := false
	class := &diskv1alpha1.DiskClass{Spec: diskv1alpha1.DiskClassSpec{
		NewDeviceGrace: &metav1.Duration{Duration: time.Minute}, Devices: diskv1alpha1.DeviceSelector{Rotational: &no},
	}}
	device := Device{Name: "nvme0n1", Path: "/dev/nvme0n1", Transport: diskv1alpha1.TransportPCIe, Size: 100 * units.MiB}
	for _, test := range []struct {
		isNew   bool
		waited  time.Duration
		classes []*diskv1alpha1.DiskClass
		want    bool
	}{
		{true, 59 * time.Second, []*diskv1alpha1.DiskClass{class}, true},
		{true, time.Minute, []*diskv1alpha1.DiskClass{class}, false},
		{false, 0, []*diskv1alpha1.DiskClass{class}, false},
		{true, 0, nil, false},
	} {
		f := Facts{Device: device, Classes: test.classes, New: test.isNew, Waited: test.waited}
		if got := f.inGracePeriod(); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
