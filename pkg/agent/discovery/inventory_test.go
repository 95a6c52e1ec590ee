package discovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/space/snapshots"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// testInventory is an inventory on real loop devices, with a cluster and a clock of the test.
type testInventory struct {
	t       *testing.T
	dev     string
	options Options
	*Inventory

	class           *diskv1alpha1.DiskClass
	approvals       []diskv1alpha1.DeviceApproval
	owner           disk.Owner
	nodes           map[string]*disk.Owner
	clusterErr      error
	attachments     []Attachment
	attachmentCalls int
	changed         chan struct{}
	now             time.Time
}

// loopDisk is a loop device over a sparse file.
type loopDisk struct {
	name, path, image string
}

func newTestInventory(t *testing.T) *testInventory {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "blkid", "wipefs")
	b := &testInventory{t: t, dev: t.TempDir(), now: time.Unix(1e9, 0), changed: make(chan struct{}, 1), owner: disk.Owner{NodeUID: "u1", NodeName: "n1", MachineID: "m"}}
	b.options = Options{
		Sys: os.DirFS("/sys/block"), Dev: b.dev, DevicePatterns: []string{},
		Classes: func() []*diskv1alpha1.DiskClass {
			if b.class == nil {
				return nil
			}
			return []*diskv1alpha1.DiskClass{b.class}
		},
		NodeLabels: func() map[string]string { return nil }, Changed: b.signalChange, DeviceTimeout: time.Minute,
		Approvals: func() []diskv1alpha1.DeviceApproval { return b.approvals },
		Owner:     func() disk.Owner { return b.owner }, Cluster: b, Now: func() time.Time { return b.now },
	}
	b.start()
	t.Cleanup(func() { b.must(b.Close()) })
	return b
}

// start makes an inventory like a new agent that knows nothing.
func (b *testInventory) start() { b.Inventory = NewInventory(b.options) }

// restart makes an inventory like a new agent that knows what the former one published.
func (b *testInventory) restart() {
	b.t.Helper()
	b.options.PublishedDisks, b.options.PublishedDevices = nil, nil
	for _, d := range b.Disks() {
		b.options.PublishedDisks = append(b.options.PublishedDisks, diskv1alpha1.Disk{
			ID: d.ID(), Device: d.Device.Name, Class: d.Class, Size: d.Device.Size, SectorSize: int32(d.Device.SectorSize), Model: d.Device.Model,
		})
	}
	for _, l := range b.Devices() {
		d := l.Device
		b.options.PublishedDevices = append(b.options.PublishedDevices, diskv1alpha1.Device{
			Name: d.Name, WWN: d.WWN, Serial: d.Serial, ByID: d.ByID, Model: d.Model, Size: d.Size, State: l.Verdict.State, Disk: l.Verdict.Disk,
		})
	}
	b.must(b.Close())
	b.start()
}

func (b *testInventory) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *testInventory) NodeNamed(_ context.Context, name string) (*disk.Owner, error) {
	return b.nodes[name], b.clusterErr
}

func (b *testInventory) Attachments(context.Context) ([]Attachment, error) {
	b.attachmentCalls++
	return b.attachments, b.clusterErr
}

func (b *testInventory) signalChange() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// waitForOwner waits until the disk belongs to this node.
func (b *testInventory) waitForOwner() {
	b.t.Helper()
	for b.onlyDisk().Snapshot.Owner != b.owner {
		testenv.Receive(b.t, "a change that gives the disk its owner", b.changed)
	}
}

// setClass makes a class select the devices.
func (b *testInventory) setClass(adoption diskv1alpha1.Adoption, grace time.Duration, devices ...loopDisk) {
	b.class = &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{
		Adoption: adoption, NewDeviceGrace: &metav1.Duration{Duration: grace},
	}}
	for _, d := range devices {
		b.class.Spec.Devices.Paths = append(b.class.Spec.Devices.Paths, d.path)
	}
	b.class.Spec.Devices.Paths = append(b.class.Spec.Devices.Paths, "/dev/none")
}

// attach makes a loop device over the file, with a link by which it is known.
func (b *testInventory) attach(image, link string) loopDisk {
	b.t.Helper()
	node := testenv.Attach(b.t, image, "512")
	d := loopDisk{filepath.Base(node), filepath.Join(b.dev, filepath.Base(node)), image}
	b.t.Cleanup(func() {
		b.must(b.Close())
		testenv.Detach(b.t, node)
	})
	var st unix.Stat_t
	b.must(unix.Stat(node, &st))
	b.must(unix.Mknod(d.path, unix.S_IFBLK|0o600, int(st.Rdev)))
	b.options.DevicePatterns = append(b.options.DevicePatterns, d.path)
	b.Inventory.options.DevicePatterns = b.options.DevicePatterns
	if link != "" {
		file := filepath.Join(b.dev, "disk/by-id", link)
		b.must(os.MkdirAll(filepath.Dir(file), 0o755))
		_ = os.Remove(file)
		b.must(os.Symlink(filepath.Join("../..", d.name), file))
	}
	return d
}

// newDisk makes a blank disk.
func (b *testInventory) newDisk(link string) loopDisk {
	b.t.Helper()
	return b.attach(testenv.Image(b.t, 64*units.MiB), link)
}

// rescan rescans, and returns the verdict about a device.
func (b *testInventory) rescan(d loopDisk) Verdict {
	b.t.Helper()
	_, err := b.Rescan(b.t.Context())
	b.must(err)
	return b.verdict(d)
}

func (b *testInventory) verdict(d loopDisk) Verdict {
	for _, l := range b.Devices() {
		if l.Device.Name == d.name {
			return l.Verdict
		}
	}
	return Verdict{}
}

func (b *testInventory) checkVerdict(v Verdict, state diskv1alpha1.DeviceState, reason string) {
	b.t.Helper()
	if v.State != state || !strings.Contains(strings.Join(v.Reasons, "; "), reason) || reason == "" && len(v.Reasons) > 0 {
		b.t.Fatalf("verdict is %+v, want %s because %q", v, state, reason)
	}
}

// hashImage is the hash of every byte of the file.
func (b *testInventory) hashImage(d loopDisk) [32]byte {
	b.t.Helper()
	data, err := os.ReadFile(d.image)
	b.must(err)
	return sha256.Sum256(data)
}

// readCounters is how often the device was read.
func (b *testInventory) readCounters(d loopDisk) string {
	b.t.Helper()
	return activity(b.options.Sys, d.name)
}

func (b *testInventory) onlyDisk() Disk {
	b.t.Helper()
	disks := b.Disks()
	if len(disks) != 1 {
		b.t.Fatalf("there are %d disks", len(disks))
	}
	return disks[0]
}

// TestApproveWritesNothing asserts that a candidate is not written before it is approved with the published
// fingerprint, and is read only once.
func TestApproveWritesNothing(t *testing.T) {
	b := newTestInventory(t)
	d := b.newDisk("wwn-1")
	before := b.hashImage(d)
	b.checkVerdict(b.rescan(d), "", "")
	if len(b.Devices()) != 0 {
		t.Errorf("a loop device that no class selects is listed: %+v", b.Devices())
	}
	b.setClass(diskv1alpha1.AdoptApprove, 0, d)
	v := b.rescan(d)
	b.checkVerdict(v, diskv1alpha1.DeviceCandidate, "waits for approval")
	read := b.readCounters(d)
	link := filepath.Join(b.dev, "disk/by-id/wwn-1")
	b.approvals = []diskv1alpha1.DeviceApproval{{ByID: link, Class: "ssd", Fingerprint: "0123456789abcdef"}}
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "has changed since")
	if b.readCounters(d) != read {
		t.Error("a blank device is read again and again")
	}
	if r := b.Refused(); len(r) != 1 || r[0].Device != d.name {
		t.Errorf("refused are %+v", r)
	}
	if b.hashImage(d) != before {
		t.Fatal("a device was written to without approval")
	}
	b.approvals[0].Fingerprint = v.Fingerprint
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	if s := b.onlyDisk(); !s.Ready() || s.Class != "ssd" || s.Snapshot.Owner != b.owner || s.ID() != b.verdict(d).Disk {
		t.Errorf("the disk is %+v", s)
	}
	if len(b.Refused()) != 0 {
		t.Errorf("refused are %+v", b.Refused())
	}
	if kept := b.Forget([]string{b.verdict(d).Disk}); len(kept) != 1 || len(b.Disks()) != 1 {
		t.Errorf("a disk in service was forgotten: kept are %v", kept)
	}
	// Neither the approval nor the class is needed any more.
	b.approvals, b.class = nil, nil
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	b.restart()
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	if s := b.onlyDisk(); !s.Ready() || s.Class != "" {
		t.Errorf("the disk is %+v", s)
	}
}

// TestGracePeriod asserts that a new device waits until it has been unopened, and the attachments old, for long enough.
func TestGracePeriod(t *testing.T) {
	const grace = 10 * time.Minute
	b := newTestInventory(t)
	old := b.newDisk("wwn-old")
	b.setClass(diskv1alpha1.AdoptAutomatic, grace, old)
	b.checkVerdict(b.rescan(old), diskv1alpha1.DeviceInUse, "")
	d := b.newDisk("wwn-new")
	b.setClass(diskv1alpha1.AdoptAutomatic, grace, old, d)
	before := b.hashImage(d)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "it appeared while the agent ran")
	if again, wanted := b.RecheckAfter(); !wanted || again != grace {
		t.Errorf("looked at again after %s, %v", again, wanted)
	}
	b.now = b.now.Add(grace - time.Second)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "it appeared")
	// Another program reads it: its time starts again.
	testenv.Run(b.t, "dd", "if="+d.path, "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "it appeared")
	if again, _ := b.RecheckAfter(); again != grace {
		t.Errorf("looked at again after %s", again)
	}
	b.attachments = []Attachment{{Name: "csi-old", UID: "1", Created: b.now.Add(-time.Hour)}, {Name: "csi-1", UID: "2", Created: b.now.Add(grace)}}
	b.now = b.now.Add(grace)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "VolumeAttachment csi-1")
	b.clusterErr = errors.New("the API server is down")
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "the API server is down")
	b.clusterErr = nil
	// The server's clock is an hour ahead. What counts is how long this node has known the attachment.
	b.attachments[1].Created = b.now.Add(time.Hour)
	b.now = b.now.Add(grace - time.Second)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceCandidate, "VolumeAttachment csi-1")
	if again, _ := b.RecheckAfter(); again != time.Second {
		t.Errorf("looked at again after %s", again)
	}
	if b.hashImage(d) != before {
		t.Fatal("a device was written to before its time")
	}
	b.now = b.now.Add(time.Second)
	asked := b.attachmentCalls
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	if b.attachmentCalls != asked+1 {
		t.Errorf("asked %d times", b.attachmentCalls-asked)
	}
	b.rescan(d)
	if _, wanted := b.RecheckAfter(); wanted || b.attachmentCalls != asked+1 {
		t.Error("disks in service cost requests")
	}
}

// TestOwner asserts that a disk of a node that exists is refused, and that one of a node that is gone gets a new owner.
func TestOwner(t *testing.T) {
	b := newTestInventory(t)
	d := b.newDisk("wwn-1")
	other := disk.Owner{NodeUID: "u2", NodeName: "n2", MachineID: "m"}
	_, err := disk.Initialize(t.Context(), d.path, other)
	b.must(err)
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d)
	before := b.hashImage(d)
	b.clusterErr = errors.New("the API server is down")
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceForeign, "the API server is down")
	b.clusterErr, b.nodes = nil, map[string]*disk.Owner{"n2": &other}
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceForeign, "belongs to node n2")
	if len(b.Disks()) != 0 || len(b.Refused()) != 1 || b.hashImage(d) != before {
		t.Errorf("disks %+v, refused %+v", b.Disks(), b.Refused())
	}
	b.nodes = nil
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	b.waitForOwner()
	// A Node that was made again has another UID.
	b.owner.NodeUID = "u3"
	b.rescan(d)
	b.waitForOwner()
	b.owner.NodeUID = ""
	blank := b.newDisk("wwn-2")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d, blank)
	b.checkVerdict(b.rescan(blank), diskv1alpha1.DeviceCandidate, "register the Node")
}

// TestCopyOfDisk asserts that a disk in service stays in service beside its copies, also after a restart. A device that
// no class selects is not read, even if a disk is missing.
func TestCopyOfDisk(t *testing.T) {
	b := newTestInventory(t)
	d := b.newDisk("wwn-1")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	id := b.onlyDisk().Snapshot.ID
	b.must(b.Close())
	image := filepath.Join(t.TempDir(), "copy.img")
	testenv.Run(b.t, "cp", "--sparse=always", d.image, image)
	b.restart()
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	c := b.attach(image, "wwn-2")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d, c)
	b.checkVerdict(b.rescan(c), diskv1alpha1.DeviceForeign, "a copy of disk "+id+", which is in service on "+d.name)
	if s := b.onlyDisk(); !s.Ready() || s.Device.Name != d.name {
		t.Errorf("the disk is %+v", s)
	}
	b.restart()
	b.checkVerdict(b.rescan(c), diskv1alpha1.DeviceForeign, "which was there before, on "+d.name)
	if s := b.onlyDisk(); !s.Ready() || s.Device.Name != d.name {
		t.Errorf("after a restart the disk is %+v", s)
	}
	// The original is not visible to the agent, and the copy is not selected.
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d)
	b.restart()
	b.Inventory.options.DevicePatterns = []string{c.path}
	read := b.readCounters(c)
	b.checkVerdict(b.rescan(c), "", "")
	if b.readCounters(c) != read {
		t.Error("a device that no class selects was read")
	}
	if s := b.onlyDisk(); s.Ready() {
		t.Errorf("the disk is served from %s", s.Device.Name)
	}
	if kept := b.Forget([]string{id, "other"}); len(kept) != 1 || kept[0] != "other" || len(b.Disks()) != 0 {
		t.Errorf("kept %v, disks %+v", kept, b.Disks())
	}
}

// TestOnOurVolumes asserts that a loop device over a volume, or over a file on a volume, is never a disk. That is so
// even if it holds the table of a missing disk.
func TestOnOurVolumes(t *testing.T) {
	b := newTestInventory(t)
	testenv.NeedProgram(t, "mkfs.ext4", "mount")
	d := b.newDisk("wwn-1")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	volume := func(partition string, at int64, raw bool) disk.Volume {
		t.Helper()
		v, err := b.onlyDisk().Engine.Create(t.Context(), disk.CreateOptions{
			Partition: partition, Name: "v", Extent: extent.New(at*units.MiB, 20*units.MiB), Raw: raw,
		})
		b.must(err)
		return v
	}
	raw := volume("11111111-2222-4333-8444-555555555555", 3, true)
	files := volume("11111111-2222-4333-8444-666666666666", 30, false)
	over := b.attach(raw.Device, "")
	testenv.Run(b.t, "mkfs.ext4", "-q", files.Device)
	target := t.TempDir()
	testenv.Run(b.t, "mount", files.Device, target)
	t.Cleanup(func() { testenv.Unmount(t, target) })
	image := filepath.Join(target, "a.img")
	b.must(os.WriteFile(image, nil, 0o600))
	b.must(os.Truncate(image, 8*units.MiB))
	above := b.attach(image, "")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d, over, above)
	b.checkVerdict(b.rescan(above), diskv1alpha1.DeviceExcluded, "lies on "+d.name)
	// The kubelet's loop devices come and go, and are not listed.
	b.checkVerdict(b.verdict(over), "", "")
	for _, l := range []loopDisk{over, above} {
		if out, _ := exec.Command("blkid", "-p", l.path).Output(); len(out) > 0 {
			t.Errorf("%s holds %s", l.name, out)
		}
	}
	if s := b.onlyDisk(); !s.Ready() || len(s.Snapshot.Volumes) != 2 {
		t.Errorf("the disk is %+v", s)
	}
}

// TestReadOnly asserts that a disk that becomes read-only is reported, and serves again afterwards.
func TestReadOnly(t *testing.T) {
	b := newTestInventory(t)
	d := b.newDisk("wwn-1")
	b.setClass(diskv1alpha1.AdoptAutomatic, 0, d)
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	b.Inventory.options.Sys = readOnlySys{b.options.Sys, d.name}
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceExcluded, "read-only")
	if s := b.onlyDisk(); s.Ready() || !strings.Contains(s.Problem, "read-only") {
		t.Errorf("the disk is %+v", s)
	}
	b.Inventory.options.Sys = b.options.Sys
	b.checkVerdict(b.rescan(d), diskv1alpha1.DeviceInUse, "")
	b.must(os.Remove(d.path))
	b.Inventory.options.DevicePatterns = []string{"/dev/none"}
	b.rescan(d)
	if s := b.onlyDisk(); s.Ready() || !strings.Contains(s.Problem, "is gone") {
		t.Errorf("the disk is %+v", s)
	}
}

// TestDiskFromStatusAddsUp asserts that a disk from the published status can be published again, for any content of the
// NodeDiskCapacity. It may have been edited while no agent ran.
func TestDiskFromStatusAddsUp(t *testing.T) {
	k := diskv1alpha1.Disk{ID: "a", Device: "sda", Size: 10 * units.MiB}
	for n := range 4 {
		a := diskv1alpha1.Allocation{Partition: string(rune('a' + n))}
		a.Start, a.Length = int64(1+n)*units.MiB, 6*units.MiB
		k.Allocations = append(k.Allocations, a)
	}
	d := diskFromStatus(k)
	if err := snapshots.Validate(d.Snapshot); err != nil || d.Snapshot.Overhead < 0 {
		t.Errorf("overhead %d, %v", d.Snapshot.Overhead, err)
	}
}
