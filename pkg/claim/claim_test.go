package claim

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/units"
)

func storageClass(parameters map[string]string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "fast"}, Provisioner: diskv1alpha1.DriverName, Parameters: parameters,
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimRetain), MountOptions: []string{"noatime"},
	}
}

func pvc(size string, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data-db-0", UID: "11111111-2222-4333-8444-555555555555"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	if change != nil {
		change(c)
	}
	return c
}

// place is one of 3 GiB.
var place = diskv1alpha1.Place{Disk: "6f2d9c1e-0000-4000-8000-000000000001", Extent: diskv1alpha1.Extent{Start: 2 << 20, Length: 3 * units.GiB}}

// volumeFor is what a claim of 3 GiB requests, and its volume at that place.
func volumeFor(t *testing.T, c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (request.Volume, *corev1.PersistentVolume) {
	t.Helper()
	asked, err := Request(c, class)
	if err != nil {
		t.Fatal(err)
	}
	return asked, NewVolume(c, class, asked, "node-1", place)
}

func TestRequest(t *testing.T) {
	ssd := map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.ParameterHeadroom: "50%", diskv1alpha1.ParameterFSType: "xfs"}
	v, err := Request(pvc("2000000001", nil), storageClass(ssd))
	if err != nil {
		t.Fatal(err)
	}
	if v.Request.Size != 1908<<20 || v.Request.Class != "ssd" || v.Headroom != 954<<20 || v.FSType != "xfs" || v.Claim != "shop/data-db-0" || v.Block {
		t.Errorf("a claim of 2000000001 bytes asks for %+v", v)
	}
	block := func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }
	if v, err := Request(pvc("1Mi", block), storageClass(ssd)); err != nil || !v.Block || v.FSType != "" {
		t.Errorf("a raw block claim of 1Mi asks for %+v: %v", v, err)
	}
	empty := func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }
	if v, err := Request(pvc("1Gi", empty), storageClass(ssd)); err != nil || v.Request.Size != units.GiB {
		t.Errorf("a claim with an empty selector asks for %+v: %v", v, err)
	}
	tests := map[string]struct {
		size   string
		change func(*corev1.PersistentVolumeClaim)
		class  map[string]string
		says   string
	}{
		"too small for xfs": {"10Mi", nil, ssd, "too small for xfs: ask for at least 300Mi"},
		"nothing":           {"0", nil, ssd, "must be larger than zero"},
		"larger than disks": {"7Ei", nil, ssd, "no disk is larger"},
		"many nodes": {"1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, ssd, "access mode ReadWriteMany is not possible"},
		"clone": {"1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }, ssd, "dataSource is set"},
		"selector": {"1Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}, ssd, "selector is set"},
		"attributes":   {"1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = ptr.To("gold") }, ssd, "volumeAttributesClassName is set"},
		"bad class":    {"1Gi", nil, map[string]string{}, "StorageClass fast: parameter disk.berth.dev/class is missing"},
		"bad headroom": {"1Gi", nil, map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.ParameterHeadroom: "x"}, "StorageClass fast: parameter disk.berth.dev/headroom"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v, err := Request(pvc(test.size, test.change), storageClass(test.class))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("asks for %+v, error %v, want one that says %q", v, err, test.says)
			}
		})
	}
}

// TestVolumeReadsBack asserts that the agent reads what the scheduler wrote.
func TestVolumeReadsBack(t *testing.T) {
	class := storageClass(map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.ParameterFSType: "ext4"})
	c := pvc("3Gi", nil)
	asked, pv := volumeFor(t, c, class)
	if pv.Name != asked.ID || !IsFor(pv, c) || !IsOurs(pv) || Owner(pv) != "shop/data-db-0" || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		t.Errorf("the volume is %+v", pv)
	}
	read := func(change func(*corev1.PersistentVolume)) (Volume, error) {
		changed := pv.DeepCopy()
		change(changed)
		return ReadVolume(changed)
	}
	v, err := read(func(*corev1.PersistentVolume) {})
	if err != nil {
		t.Fatal(err)
	}
	if v.ID != asked.ID || v.Partition != asked.Partition || v.Node != "node-1" || v.Class != "ssd" || v.FSType != "ext4" || v.Place != place || v.Size != 3*units.GiB || v.Block {
		t.Errorf("it reads back as %+v", v)
	}
	if v, err := read(func(pv *corev1.PersistentVolume) {
		pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("5Gi")
	}); err != nil || v.Size != 5*units.GiB || v.Place != place {
		t.Errorf("grown, it reads as %+v: %v", v, err)
	}
	if v, err := read(func(pv *corev1.PersistentVolume) {
		pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("1Gi")
	}); err != nil || v.Size != 3*units.GiB {
		t.Errorf("a capacity edited to less must not shrink it: %+v: %v", v, err)
	}
	if v, err := read(func(pv *corev1.PersistentVolume) { pv.Labels = nil }); err != nil || v.Node != "node-1" {
		t.Errorf("without its label it is on %q: %v", v.Node, err)
	}
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"other driver": func(pv *corev1.PersistentVolume) { pv.Spec.CSI.Driver = "other" },
		"no source":    func(pv *corev1.PersistentVolume) { pv.Spec.CSI = nil },
		"no place":     func(pv *corev1.PersistentVolume) { delete(pv.Spec.CSI.VolumeAttributes, diskv1alpha1.AttributeStart) },
		"no handle":    func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeHandle = "" },
		"no affinity":  func(pv *corev1.PersistentVolume) { pv.Spec.NodeAffinity = nil },
		"two nodes": func(pv *corev1.PersistentVolume) {
			e := &pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
			e.Values = append(e.Values, "node-2")
		},
		"no capacity": func(pv *corev1.PersistentVolume) { pv.Spec.Capacity = nil },
		"huge capacity": func(pv *corev1.PersistentVolume) {
			pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("8Ei")
		},
		"bad fs": func(pv *corev1.PersistentVolume) { pv.Spec.CSI.FSType = "vfat" },
	} {
		if v, err := read(change); err == nil {
			t.Errorf("%s: read as %+v", name, v)
		}
	}
}

// TestIsFor asserts that a PersistentVolume does not belong to a later claim of the same name.
func TestIsFor(t *testing.T) {
	class := storageClass(map[string]string{diskv1alpha1.AttributeClass: "ssd"})
	c := pvc("3Gi", nil)
	asked, err := Request(c, class)
	if err != nil {
		t.Fatal(err)
	}
	pv := NewVolume(c, class, asked, "node-1", diskv1alpha1.Place{})
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"UID":       func(c *corev1.PersistentVolumeClaim) { c.UID = "11111111-2222-4333-8444-666666666666" },
		"name":      func(c *corev1.PersistentVolumeClaim) { c.Name = "data-db-1" },
		"namespace": func(c *corev1.PersistentVolumeClaim) { c.Namespace = "other" },
	} {
		if other := pvc("3Gi", change); IsFor(pv, other) {
			t.Errorf("it is for a claim of another %s", name)
		}
	}
}

// TestNotProvisioned asserts for which claims no volume is made, although an existing volume could be bound to them.
func TestNotProvisioned(t *testing.T) {
	xfs := map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.ParameterFSType: "xfs"}
	selecting := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpExists}}}
	}
	for name, test := range map[string]struct {
		size   string
		change func(*corev1.PersistentVolumeClaim)
		want   bool
	}{
		"selector":          {"1Gi", selecting, true},
		"too small for xfs": {"100Mi", nil, true},
		"nothing":           {"0", selecting, false},
		"clone": {"1Gi", func(c *corev1.PersistentVolumeClaim) {
			selecting(c)
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{}
		}, false},
	} {
		v, err := Request(pvc(test.size, test.change), storageClass(xfs))
		var notMade *NotProvisionedError
		if err == nil || errors.As(err, &notMade) != test.want || test.want && v.ID == "" {
			t.Errorf("%s: asks for %+v, error %v", name, v, err)
		}
	}
}

// TestReadMoveTo asserts when a volume must be moved, and that a mistake in that does not end its service.
func TestReadMoveTo(t *testing.T) {
	to := place
	to.Start += 9 * units.GiB
	now := metav1.Now()
	ended := func(phase corev1.PersistentVolumePhase, policy corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
		return func(pv *corev1.PersistentVolume) {
			pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = phase, policy
		}
	}
	for name, test := range map[string]struct {
		value  string
		change func(*corev1.PersistentVolume)
		moves  bool
		fails  bool
	}{
		"moved":    {value: to.String(), moves: true},
		"nowhere":  {value: "elsewhere", fails: true},
		"no value": {},
		"released": {value: to.String(), change: ended(corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete)},
		"failed":   {value: to.String(), change: ended(corev1.VolumeFailed, corev1.PersistentVolumeReclaimDelete)},
		// Its new place must not become another volume's: a later claim may get the volume.
		"retained": {value: to.String(), change: ended(corev1.VolumeReleased, corev1.PersistentVolumeReclaimRetain), moves: true},
		"deleted":  {value: to.String(), change: func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp = &now }},
	} {
		_, pv := volumeFor(t, pvc("3Gi", nil), storageClass(map[string]string{diskv1alpha1.AttributeClass: "ssd"}))
		if test.value != "" {
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, test.value)
		}
		if test.change != nil {
			test.change(pv)
		}
		got, err := ReadMoveTo(pv)
		if (got != nil) != test.moves || test.moves && *got != to || (err != nil) != test.fails {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		v, err := ReadVolume(pv)
		if err != nil || (v.MoveTo != nil) != test.moves || v.Place != place {
			t.Errorf("%s: the volume is %+v: %v", name, v, err)
		}
	}
}

// TestReadPieces asserts how long the first piece of a volume is, and that a mistake in the others does not end the
// service of the volume.
func TestReadPieces(t *testing.T) {
	one, two := place, place
	one.Start, one.Length = 9*units.GiB, units.GiB
	two.Start, two.Length = 20*units.GiB, 2*units.GiB
	tooLarge := one
	tooLarge.Length = diskv1alpha1.MaxVolumeSize - units.GiB
	to := place
	to.Start, to.Length = 30*units.GiB, 9*units.GiB
	for name, test := range map[string]struct {
		value, moveTo, capacity string
		pieces                  []diskv1alpha1.Place
		first, size             int64
		fails                   bool
	}{
		"one piece":    {capacity: "5Gi", first: 5 * units.GiB, size: 5 * units.GiB},
		"three pieces": {value: diskv1alpha1.JoinPieces([]diskv1alpha1.Place{one, two}), capacity: "6Gi", pieces: []diskv1alpha1.Place{one, two}, first: 3 * units.GiB, size: 6 * units.GiB},
		// It grew where it was before it got a piece.
		"longer first": {value: one.String(), capacity: "5Gi", pieces: []diskv1alpha1.Place{one}, first: 4 * units.GiB, size: 5 * units.GiB},
		"edited":       {value: one.String(), capacity: "1Gi", pieces: []diskv1alpha1.Place{one}, first: 3 * units.GiB, size: 4 * units.GiB},
		"moved":        {value: one.String(), moveTo: to.String(), capacity: "9Gi", pieces: []diskv1alpha1.Place{one}, first: 3 * units.GiB, size: 9 * units.GiB},
		"unreadable":   {value: "x", capacity: "5Gi", first: 5 * units.GiB, size: 5 * units.GiB, fails: true},
		"by half":      {value: one.String() + ",x", capacity: "5Gi", first: 5 * units.GiB, size: 5 * units.GiB, fails: true},
		"too large":    {value: tooLarge.String(), capacity: "5Gi", first: 5 * units.GiB, size: 5 * units.GiB, fails: true},
	} {
		_, pv := volumeFor(t, pvc("3Gi", nil), storageClass(map[string]string{diskv1alpha1.AttributeClass: "ssd"}))
		pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse(test.capacity)
		for key, value := range map[string]string{diskv1alpha1.AnnotationPieces: test.value, diskv1alpha1.AnnotationMoveTo: test.moveTo} {
			if value != "" {
				metav1.SetMetaDataAnnotation(&pv.ObjectMeta, key, value)
			}
		}
		if got, err := ReadPieces(pv); !slices.Equal(got, test.pieces) || (err != nil) != test.fails {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		v, err := ReadVolume(pv)
		if err != nil || !slices.Equal(v.Pieces, test.pieces) || v.FirstLength() != test.first || v.Size != test.size || v.Place != place {
			t.Errorf("%s: the volume is %+v, its first piece has %d: %v", name, v, v.FirstLength(), err)
		}
	}
}
