package manifest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// newDisk makes a disk of ours of 256 MiB on a loop device. fill makes its content.
func newDisk(t *testing.T, fill func(d *disk.Disk)) (path string) {
	t.Helper()
	testenv.NeedProgram(t, "blkid", "wipefs", "mkfs.ext4")
	path = testenv.PartitionedLoop(t, 256*units.MiB)
	if _, err := disk.Initialize(t.Context(), path, disk.Owner{}); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(t.Context(), path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fill(d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// uuidOf is the UUID of the test's volume with that number.
func uuidOf(number string) string {
	return strings.Repeat(number, 8) + "-bbbb-4ccc-8ddd-eeeeeeeeeeee"
}

// makeVolume makes a volume of 16 MiB that starts at that MiB.
func makeVolume(t *testing.T, d *disk.Disk, number string, at int64, o disk.CreateOptions) disk.Volume {
	t.Helper()
	o.Partition, o.Extent = diskv1alpha1.PartitionID("pvc-"+uuidOf(number)), extent.New(at*units.MiB, 16*units.MiB)
	o.Name = uuidOf(number)
	v, err := d.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func format(t *testing.T, d *disk.Disk, v disk.Volume, filled bool) {
	t.Helper()
	if filled {
		testenv.Run(t, "mkfs.ext4", "-q", "-F", v.Device)
	}
	if err := d.MarkFormatted(t.Context(), v.Partition); err != nil {
		t.Fatal(err)
	}
}

func options(devices ...string) Options {
	return Options{NodeName: "n", DevicePatterns: devices, Sys: os.DirFS("/sys/block"), ReclaimPolicy: corev1.PersistentVolumeReclaimRetain}
}

// TestVolumes asserts that each persistent volume of a disk becomes a PersistentVolume which the agent reads back as
// the same volume. That is so if the kernel shows its partition, and if not.
func TestVolumes(t *testing.T) {
	note, err := claim.Note{Namespace: "shop", Claim: "db", StorageClass: "fast", DiskClass: "ssd"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := newDisk(t, func(d *disk.Disk) {
		format(t, d, makeVolume(t, d, "1", 20, disk.CreateOptions{Note: note}), true)
		makeVolume(t, d, "2", 40, disk.CreateOptions{Raw: true})
		makeVolume(t, d, "3", 60, disk.CreateOptions{})
		format(t, d, makeVolume(t, d, "4", 80, disk.CreateOptions{}), false)
		format(t, d, makeVolume(t, d, "5", 100, disk.CreateOptions{Ephemeral: true}), true)
	})
	for _, attached := range []bool{true, false} {
		if !attached {
			testenv.RemovePartitions(t, path)
		}
		volumes, err := Volumes(t.Context(), options(path))
		if err == nil || !strings.Contains(err.Error(), uuidOf("4")) || !strings.Contains(err.Error(), "no file system is recognized") {
			t.Errorf("of a volume without its file system: %v", err)
		}
		var names []string
		for _, pv := range volumes {
			names = append(names, pv.Name)
			v, err := claim.ReadVolume(pv)
			if err != nil || v.ID != pv.Name || v.Node != "n" || v.Size != 16*units.MiB || v.Block != (pv.Name == "pvc-"+uuidOf("2")) {
				t.Errorf("%s reads back as %+v, %v", pv.Name, v, err)
			}
			if pv.Spec.ClaimRef != nil || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
				t.Errorf("%s is %+v", pv.Name, pv.Spec)
			}
		}
		if want := []string{"pvc-" + uuidOf("1"), "pvc-" + uuidOf("2"), "pvc-" + uuidOf("3")}; !slices.Equal(names, want) {
			t.Fatalf("written are %v, want %v", names, want)
		}
		if got := []string{volumes[0].Spec.CSI.FSType, volumes[0].Spec.StorageClassName, volumes[1].Spec.CSI.FSType}; !slices.Equal(got, []string{"ext4", "fast", ""}) {
			t.Errorf("file system and class are %q", got)
		}
	}
}

// TestOptionsOverrule asserts that options take precedence over notes.
func TestOptionsOverrule(t *testing.T) {
	note, err := claim.Note{Namespace: "shop", Claim: "db", StorageClass: "fast", DiskClass: "ssd"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	v := disk.Volume{Name: uuidOf("1"), Partition: diskv1alpha1.PartitionID("pvc-" + uuidOf("1")), Extent: extent.New(20*units.MiB, 16*units.MiB), Note: note}
	o := options()
	o.Bind = true
	pv := o.persistentVolume(disk.Snapshot{ID: "d"}, v, "pvc-"+uuidOf("1"), "xfs")
	if ref := pv.Spec.ClaimRef; ref == nil || ref.Namespace != "shop" || ref.Name != "db" || ref.UID != "" {
		t.Errorf("bound to %+v", ref)
	}
	if pv.Spec.StorageClassName != "fast" || pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] != "ssd" || pv.Spec.CSI.FSType != "xfs" {
		t.Errorf("by its note it is %+v", pv.Spec)
	}
	o.StorageClass, o.DiskClass, o.ReclaimPolicy = "slow", "hdd", corev1.PersistentVolumeReclaimDelete
	pv = o.persistentVolume(disk.Snapshot{ID: "d"}, v, "pvc-"+uuidOf("1"), "xfs")
	if pv.Spec.StorageClassName != "slow" || pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] != "hdd" || pv.Spec.PersistentVolumeReclaimPolicy != "Delete" {
		t.Errorf("by the options it is %+v", pv.Spec)
	}
	v.Note = "damaged"
	if pv := o.persistentVolume(disk.Snapshot{ID: "d"}, v, "pvc-"+uuidOf("1"), "xfs"); pv.Spec.ClaimRef != nil || pv.Spec.StorageClassName != "slow" {
		t.Errorf("without a note it is %+v", pv.Spec)
	}
}

// TestCopies asserts that a volume on two disks is not written, and that two disks with one identity stop everything.
// The right one cannot be known.
func TestCopies(t *testing.T) {
	one := newDisk(t, func(d *disk.Disk) {
		makeVolume(t, d, "1", 20, disk.CreateOptions{Raw: true})
		makeVolume(t, d, "2", 40, disk.CreateOptions{Raw: true})
	})
	other := newDisk(t, func(d *disk.Disk) { makeVolume(t, d, "1", 60, disk.CreateOptions{Raw: true}) })
	volumes, err := Volumes(t.Context(), options(one, other))
	if err == nil || !strings.Contains(err.Error(), "pvc-"+uuidOf("1")+" is on disk") || len(volumes) != 1 || volumes[0].Name != "pvc-"+uuidOf("2") {
		t.Errorf("of a volume on two disks: %d volumes, %v", len(volumes), err)
	}
	testenv.RemovePartitions(t, one)
	testenv.RemovePartitions(t, other)
	testenv.Run(t, "dd", "if="+one, "of="+other, "bs=1M", "status=none")
	if volumes, err := Volumes(t.Context(), options(one, other)); err == nil || !strings.Contains(err.Error(), "name the right one with --devices") || len(volumes) != 0 {
		t.Errorf("of a copied disk: %d volumes, %v", len(volumes), err)
	}
	// Devices that are not named are not read.
	if volumes, err := Volumes(t.Context(), options(one)); err != nil || len(volumes) != 2 {
		t.Errorf("of one of the two: %d volumes, %v", len(volumes), err)
	}
}

// TestWrite asserts that the output can be applied: YAML without status.
func TestWrite(t *testing.T) {
	v := disk.Volume{Name: uuidOf("1"), Partition: diskv1alpha1.PartitionID("pvc-" + uuidOf("1")), Extent: extent.New(20*units.MiB, 16*units.MiB)}
	o := options()
	pv := o.persistentVolume(disk.Snapshot{ID: "d"}, v, "pvc-"+uuidOf("1"), "ext4")
	var out bytes.Buffer
	if err := Write(&out, []*corev1.PersistentVolume{pv, pv}); err != nil {
		t.Fatal(err)
	}
	documents := strings.Split(out.String(), "---\n")
	if len(documents) != 3 || documents[0] != "" || strings.Contains(out.String(), "status:") || strings.Contains(out.String(), "creationTimestamp") {
		t.Fatalf("written is %s", out.String())
	}
	read := &corev1.PersistentVolume{}
	if err := yaml.UnmarshalStrict([]byte(documents[2]), read); err != nil || read.Name != pv.Name || read.Kind != "PersistentVolume" || !claim.IsOurs(read) {
		t.Errorf("read back is %+v, %v", read, err)
	}
	if err := Write(brokenWriter{}, []*corev1.PersistentVolume{pv}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("to a full disk: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// TestValidate asserts that missing options, and patterns that match no device, are errors that name the flag.
func TestValidate(t *testing.T) {
	for says, change := range map[string]func(o *Options){
		"":               func(*Options) {},
		"reclaim policy": func(o *Options) { o.ReclaimPolicy = "Recycle" },
		"name of the":    func(o *Options) { o.NodeName = "" },
		"--devices=":     func(o *Options) { o.DevicePatterns = nil },
	} {
		o := options("/dev/sdx")
		change(&o)
		if err := o.Validate(); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if _, err := Volumes(t.Context(), options()); err == nil || !strings.Contains(err.Error(), "--devices=") {
		t.Errorf("without devices: %v", err)
	}
	if _, err := Volumes(t.Context(), options("/dev/no-such-device*")); err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("with a pattern that matches no device: %v", err)
	}
}
