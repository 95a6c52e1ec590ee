package csi

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/pkg/claim"
)

const (
	claimID = "pvc-11111111-2222-4333-8444-555555555555"
	diskID  = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
)

func (a *fakeVolumes) CreateVolume(_ context.Context, r volumes.VolumeRequest) (volumes.Volume, error) {
	a.created = r
	return volumes.Volume{ID: r.ID, Disk: diskID, Class: r.Class, Start: 1 << 20, Size: r.Size, Block: r.Block}, a.err
}

func (a *fakeVolumes) GrowVolume(_ context.Context, _ string, size, limit int64) (volumes.Volume, error) {
	a.grown = [2]int64{size, limit}
	v := a.volume
	v.Size = size
	return v, a.err
}

func (a *fakeVolumes) DeleteVolume(_ context.Context, volumeID string) error {
	a.deleted = append(a.deleted, volumeID)
	return a.err
}

// makeVolumes returns n volumes to list.
func makeVolumes(n int) []volumes.Volume {
	var all []volumes.Volume
	for i := range n {
		all = append(all, volumes.Volume{ID: fmt.Sprintf("pvc-11111111-2222-4333-8444-%012d", n-i), Disk: diskID, Start: int64(i+1) << 30, Size: 1 << 30})
	}
	return all
}

func (a *fakeVolumes) ListVolumes() []volumes.Volume { return makeVolumes(5) }

func (a *fakeVolumes) Capacity(class string) (free, largest int64) {
	if class == "ssd" {
		return 100 << 30, 60 << 30
	}
	return 200 << 30, 120 << 30
}

func mountAs(fsType string) *csispec.VolumeCapability {
	return &csispec.VolumeCapability{
		AccessType: &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}
}

func asBlock() *csispec.VolumeCapability {
	c := mountAs("")
	c.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
	return c
}

func topology(node string) *csispec.Topology {
	return &csispec.Topology{Segments: map[string]string{diskv1alpha1.LabelNode: node}}
}

// validCreate is a call by the external-provisioner with --extra-create-metadata.
func validCreate() *csispec.CreateVolumeRequest {
	return &csispec.CreateVolumeRequest{
		Name:               claimID,
		CapacityRange:      &csispec.CapacityRange{RequiredBytes: 10<<30 - 1},
		VolumeCapabilities: []*csispec.VolumeCapability{mountAs("xfs")},
		Parameters: map[string]string{
			diskv1alpha1.AttributeClass:        "ssd",
			"csi.storage.k8s.io/pvc/name":      "data",
			"csi.storage.k8s.io/pvc/namespace": "default",
			"csi.storage.k8s.io/pv/name":       claimID,
		},
		AccessibilityRequirements: &csispec.TopologyRequirement{
			Requisite: []*csispec.Topology{topology("other"), topology("n")},
			Preferred: []*csispec.Topology{topology("n")},
		},
	}
}

// TestCreateArguments asserts that impossible CreateVolume calls are refused with the field's name, and that nothing is
// created for them.
func TestCreateArguments(t *testing.T) {
	type request = csispec.CreateVolumeRequest
	for name, tc := range map[string]struct {
		spoil func(*request)
		code  codes.Code
		says  string
	}{
		"no name":          {func(r *request) { r.Name = "" }, codes.InvalidArgument, "name"},
		"long name":        {func(r *request) { r.Name = strings.Repeat("x", 129) }, codes.InvalidArgument, "name"},
		"clone":            {func(r *request) { r.VolumeContentSource = &csispec.VolumeContentSource{} }, codes.InvalidArgument, "volume_content_source"},
		"mutable":          {func(r *request) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument, "mutable_parameters"},
		"no capabilities":  {func(r *request) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "volume_capabilities"},
		"a nil capability": {func(r *request) { r.VolumeCapabilities = []*csispec.VolumeCapability{nil} }, codes.InvalidArgument, "volume_capabilities[0]"},
		"both kinds":       {func(r *request) { r.VolumeCapabilities = append(r.VolumeCapabilities, asBlock()) }, codes.InvalidArgument, "both mount and block"},
		"two file systems": {func(r *request) { r.VolumeCapabilities = append(r.VolumeCapabilities, mountAs("ext4")) }, codes.InvalidArgument, "ext4"},
		"many nodes": {func(r *request) {
			r.VolumeCapabilities[0].AccessMode.Mode = csispec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
		}, codes.InvalidArgument, "access mode"},
		"no class":          {func(r *request) { delete(r.Parameters, diskv1alpha1.AttributeClass) }, codes.InvalidArgument, "class"},
		"unknown parameter": {func(r *request) { r.Parameters["sise"] = "1" }, codes.InvalidArgument, "sise"},
		"unknown metadata":  {func(r *request) { r.Parameters["csi.storage.k8s.io/x"] = "1" }, codes.InvalidArgument, "csi.storage.k8s.io/x"},
		"half a claim":      {func(r *request) { delete(r.Parameters, "csi.storage.k8s.io/pvc/name") }, codes.InvalidArgument, "by half"},
		"a claim's name":    {func(r *request) { r.Parameters["csi.storage.k8s.io/pvc/name"] = "../x" }, codes.InvalidArgument, "../x"},
		"other parameter":   {func(r *request) { r.Parameters[diskv1alpha1.ParameterFSType] = "ext4" }, codes.InvalidArgument, "ext4"},
		"negative size":     {func(r *request) { r.CapacityRange.RequiredBytes = -1 }, codes.InvalidArgument, "required_bytes"},
		"negative limit":    {func(r *request) { r.CapacityRange.LimitBytes = -1 }, codes.InvalidArgument, "limit_bytes"},
		"limit below":       {func(r *request) { r.CapacityRange.LimitBytes = 1 }, codes.InvalidArgument, "limit_bytes"},
		"huge":              {func(r *request) { r.CapacityRange.RequiredBytes = 1 << 62 }, codes.OutOfRange, "required_bytes"},
		"nothing between":   {func(r *request) { r.CapacityRange.LimitBytes = 10<<30 - 1 }, codes.OutOfRange, "multiples"},
		"small for xfs":     {func(r *request) { r.CapacityRange.RequiredBytes = 1 << 20 }, codes.OutOfRange, "300Mi"},
		"tiny limit": {func(r *request) {
			r.CapacityRange, r.VolumeCapabilities[0] = &csispec.CapacityRange{LimitBytes: 5}, mountAs("ext4")
		}, codes.OutOfRange, "limit_bytes"},
		"elsewhere": {func(r *request) { r.AccessibilityRequirements.Requisite = r.AccessibilityRequirements.Requisite[:1] }, codes.ResourceExhausted, "accessibility_requirements"},
	} {
		r, a := validCreate(), &fakeVolumes{}
		tc.spoil(r)
		_, err := NewController("n", a, a).CreateVolume(t.Context(), r)
		if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v about %q", name, err, tc.code, tc.says)
		}
		if a.created.ID != "" {
			t.Errorf("%s: a volume was asked for", name)
		}
	}
}

// TestCreate asserts what a CreateVolume call requests of package volumes, and that package claim can read the
// resulting PersistentVolume.
func TestCreate(t *testing.T) {
	a := &fakeVolumes{}
	c := NewController("n", a, a)
	response, err := c.CreateVolume(t.Context(), validCreate())
	if err != nil {
		t.Fatal(err)
	}
	want := volumes.VolumeRequest{ID: claimID, Class: "ssd", FSType: "xfs", Size: 10 << 30, Note: claim.Note{
		Namespace: "default", Claim: "data", DiskClass: "ssd", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
	}}
	if !reflect.DeepEqual(a.created, want) {
		t.Errorf("asked for %+v, want %+v", a.created, want)
	}
	v := response.Volume
	if v.VolumeId != claimID || v.CapacityBytes != 10<<30 || len(v.AccessibleTopology) != 1 || !maps.Equal(v.AccessibleTopology[0].Segments, topology("n").Segments) {
		t.Errorf("answer is %v", v)
	}
	// As the external-provisioner writes it.
	term := corev1.NodeSelectorTerm{}
	for key, value := range v.AccessibleTopology[0].Segments {
		term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{value}})
	}
	got, err := claim.ReadVolume(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		Capacity:     corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.CapacityBytes, resource.BinarySI)},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}}},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: diskv1alpha1.DriverName, VolumeHandle: v.VolumeId, FSType: "xfs", VolumeAttributes: v.VolumeContext,
		}},
	}})
	if err != nil || got.ID != claimID || got.Node != "n" || got.Class != "ssd" || got.Size != 10<<30 || got.Place.Disk != diskID {
		t.Errorf("its PersistentVolume is understood as %+v: %v", got, err)
	}
	for name, r := range map[string]func(*csispec.CreateVolumeRequest){
		"no range": func(r *csispec.CreateVolumeRequest) { r.CapacityRange = nil },
		"block":    func(r *csispec.CreateVolumeRequest) { r.VolumeCapabilities = []*csispec.VolumeCapability{asBlock()} },
		"no node":  func(r *csispec.CreateVolumeRequest) { r.AccessibilityRequirements = nil },
		"any name": func(r *csispec.CreateVolumeRequest) { r.Name = "anything" },
	} {
		request := validCreate()
		r(request)
		if _, err := c.CreateVolume(t.Context(), request); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := diskv1alpha1.VolumeUUID(a.created.ID); !ok || a.created.Block != (name == "block") || a.created.Block && a.created.FSType != "" {
			t.Errorf("%s: asked for %+v", name, a.created)
		}
	}
	// Without --extra-create-metadata, and for one pod only.
	request := validCreate()
	request.Parameters = map[string]string{diskv1alpha1.AttributeClass: "ssd"}
	request.VolumeCapabilities[0].AccessMode.Mode = csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	if _, err := c.CreateVolume(t.Context(), request); err != nil {
		t.Error(err)
	}
	if n := a.created.Note; n.Claim != "" || len(n.AccessModes) != 1 || n.AccessModes[0] != corev1.ReadWriteOncePod {
		t.Errorf("noted is %+v", n)
	}
	a.err = fmt.Errorf("%w: x", volumes.ErrExists)
	if _, err := c.CreateVolume(t.Context(), validCreate()); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another one of that name: %v", err)
	}
}

// TestListPages asserts that the pages of a list contain each volume once, in order, and that invalid tokens are
// refused.
func TestListPages(t *testing.T) {
	a := &fakeVolumes{}
	c := NewController("n", a, a)
	for _, size := range []int32{0, 1, 2, 4, 5, 6} {
		var seen []string
		for token := ""; ; {
			page, err := c.ListVolumes(t.Context(), &csispec.ListVolumesRequest{MaxEntries: size, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 && len(page.Entries) > int(size) {
				t.Errorf("%d entries on a page of %d", len(page.Entries), size)
			}
			for _, e := range page.Entries {
				seen = append(seen, e.Volume.VolumeId)
			}
			if token = page.NextToken; token == "" {
				break
			}
		}
		if len(seen) != 5 || !slices.IsSorted(seen) || len(slices.Compact(seen)) != 5 {
			t.Errorf("pages of %d show %v", size, seen)
		}
	}
	for r, want := range map[*csispec.ListVolumesRequest]codes.Code{
		{MaxEntries: -1}:             codes.InvalidArgument,
		{StartingToken: "nonsense"}:  codes.Aborted,
		{StartingToken: "pvc-12345"}: codes.Aborted,
	} {
		if _, err := c.ListVolumes(t.Context(), r); status.Code(err) != want {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// TestGetCapacity asserts that capacity is reported by class and node, and that unknown parameters are refused.
func TestGetCapacity(t *testing.T) {
	a := &fakeVolumes{}
	c := NewController("n", a, a)
	for name, tc := range map[string]struct {
		request         *csispec.GetCapacityRequest
		available, most int64
		least           int64
	}{
		"everything": {&csispec.GetCapacityRequest{}, 200 << 30, 120 << 30, 1 << 20},
		"a class":    {&csispec.GetCapacityRequest{Parameters: map[string]string{diskv1alpha1.AttributeClass: "ssd"}, AccessibleTopology: topology("n")}, 100 << 30, 60 << 30, 1 << 20},
		"xfs": {&csispec.GetCapacityRequest{
			Parameters: map[string]string{diskv1alpha1.AttributeClass: "ssd"}, VolumeCapabilities: []*csispec.VolumeCapability{mountAs("xfs")},
		}, 100 << 30, 60 << 30, diskv1alpha1.MinSizeXFS},
		"another node": {&csispec.GetCapacityRequest{AccessibleTopology: topology("other")}, 0, 0, 1 << 20},
	} {
		got, err := c.GetCapacity(t.Context(), tc.request)
		if err != nil || got.AvailableCapacity != tc.available || got.MaximumVolumeSize.Value != tc.most || got.MinimumVolumeSize.Value != tc.least {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, r := range map[string]*csispec.GetCapacityRequest{
		"unknown parameter": {Parameters: map[string]string{"x": "y"}},
		"bad capability":    {VolumeCapabilities: []*csispec.VolumeCapability{mountAs("btrfs")}},
	} {
		if _, err := c.GetCapacity(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestControllerExpand asserts that volumes grow to multiples of the alignment and never shrink, and which calls are
// refused.
func TestControllerExpand(t *testing.T) {
	type request = csispec.ControllerExpandVolumeRequest
	a := &fakeVolumes{volume: volumes.Volume{ID: claimID, Size: 10 << 30}}
	c := NewController("n", a, a)
	for name, tc := range map[string]struct {
		request *request
		code    codes.Code
	}{
		"no volume":  {&request{CapacityRange: &csispec.CapacityRange{RequiredBytes: 1}}, codes.InvalidArgument},
		"no range":   {&request{VolumeId: claimID}, codes.InvalidArgument},
		"negative":   {&request{VolumeId: claimID, CapacityRange: &csispec.CapacityRange{RequiredBytes: -1}}, codes.InvalidArgument},
		"not there":  {&request{VolumeId: "x", CapacityRange: &csispec.CapacityRange{RequiredBytes: 1}}, codes.NotFound},
		"to shrink":  {&request{VolumeId: claimID, CapacityRange: &csispec.CapacityRange{LimitBytes: 1 << 30}}, codes.OutOfRange},
		"capability": {&request{VolumeId: claimID, VolumeCapability: &csispec.VolumeCapability{}, CapacityRange: &csispec.CapacityRange{}}, codes.InvalidArgument},
	} {
		if _, err := c.ControllerExpandVolume(t.Context(), tc.request); status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
	}
	for required, want := range map[int64]int64{0: 10 << 30, 1 << 30: 10 << 30, 10 << 30: 10 << 30, 10<<30 + 1: 10<<30 + 1<<20, 20 << 30: 20 << 30} {
		got, err := c.ControllerExpandVolume(t.Context(), &request{VolumeId: claimID, CapacityRange: &csispec.CapacityRange{RequiredBytes: required}})
		if err != nil || got.CapacityBytes != want || !got.NodeExpansionRequired {
			t.Errorf("to %d: %v, %v", required, got, err)
		}
	}
	a.err = fmt.Errorf("%w: x", volumes.ErrNoRoom)
	if _, err := c.ControllerExpandVolume(t.Context(), &request{VolumeId: claimID, CapacityRange: &csispec.CapacityRange{RequiredBytes: 1 << 40}}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("no room: %v", err)
	}
}

// TestDelete asserts that a volume is deleted, and that an ID that is not ours counts as deleted.
func TestDelete(t *testing.T) {
	a := &fakeVolumes{}
	c := NewController("n", a, a)
	for id, want := range map[string]codes.Code{"": codes.InvalidArgument, "anything": codes.OK, claimID: codes.OK} {
		if _, err := c.DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{VolumeId: id}); status.Code(err) != want {
			t.Errorf("%q: %v, want %v", id, err, want)
		}
	}
	if !slices.Equal(a.deleted, []string{claimID}) {
		t.Errorf("deleted %v", a.deleted)
	}
}

// TestValidateCapabilities asserts which capabilities a volume confirms, and that a disk out of service makes its
// condition abnormal.
func TestValidateCapabilities(t *testing.T) {
	a := &fakeVolumes{volume: volumes.Volume{ID: claimID}}
	c := NewController("n", a, a)
	for name, tc := range map[string]struct {
		id           string
		capabilities []*csispec.VolumeCapability
		code         codes.Code
		confirmed    bool
	}{
		"no volume":       {"", []*csispec.VolumeCapability{mountAs("")}, codes.InvalidArgument, false},
		"no capabilities": {claimID, nil, codes.InvalidArgument, false},
		"not there":       {"x", []*csispec.VolumeCapability{mountAs("")}, codes.NotFound, false},
		"good":            {claimID, []*csispec.VolumeCapability{mountAs("")}, codes.OK, true},
		"block":           {claimID, []*csispec.VolumeCapability{asBlock()}, codes.OK, false},
		"btrfs":           {claimID, []*csispec.VolumeCapability{mountAs("btrfs")}, codes.OK, false},
	} {
		got, err := c.ValidateVolumeCapabilities(t.Context(), &csispec.ValidateVolumeCapabilitiesRequest{VolumeId: tc.id, VolumeCapabilities: tc.capabilities})
		if status.Code(err) != tc.code || (got.GetConfirmed() != nil) != tc.confirmed || err == nil && !tc.confirmed && got.Message == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := c.ControllerGetVolume(t.Context(), &csispec.ControllerGetVolumeRequest{VolumeId: claimID}); err != nil || got.Status.VolumeCondition.Abnormal {
		t.Errorf("%v, %v", got, err)
	}
	a.volume.Problem = "hangs"
	if got, err := c.ControllerGetVolume(t.Context(), &csispec.ControllerGetVolumeRequest{VolumeId: claimID}); err != nil || !got.Status.VolumeCondition.Abnormal {
		t.Errorf("%v, %v", got, err)
	}
}

// TestEmptyCalls asserts that calls with missing fields are refused without a panic.
func TestEmptyCalls(t *testing.T) {
	a := &fakeVolumes{}
	n, c := newNode(t, a), NewController("n", a, a)
	half := []*csispec.VolumeCapability{{AccessType: &csispec.VolumeCapability_Mount{}}, {AccessType: &csispec.VolumeCapability_Block{}}, {}}
	calls := map[string]func() error{
		"stage": func() error { _, err := n.NodeStageVolume(t.Context(), &csispec.NodeStageVolumeRequest{}); return err },
		"unstage": func() error {
			_, err := n.NodeUnstageVolume(t.Context(), &csispec.NodeUnstageVolumeRequest{})
			return err
		},
		"publish": func() error {
			_, err := n.NodePublishVolume(t.Context(), &csispec.NodePublishVolumeRequest{})
			return err
		},
		"unpublish": func() error {
			_, err := n.NodeUnpublishVolume(t.Context(), &csispec.NodeUnpublishVolumeRequest{})
			return err
		},
		"stats": func() error {
			_, err := n.NodeGetVolumeStats(t.Context(), &csispec.NodeGetVolumeStatsRequest{})
			return err
		},
		"expand": func() error {
			_, err := n.NodeExpandVolume(t.Context(), &csispec.NodeExpandVolumeRequest{})
			return err
		},
		"create": func() error { _, err := c.CreateVolume(t.Context(), &csispec.CreateVolumeRequest{}); return err },
		"delete": func() error { _, err := c.DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{}); return err },
		"grow": func() error {
			_, err := c.ControllerExpandVolume(t.Context(), &csispec.ControllerExpandVolumeRequest{})
			return err
		},
		"get": func() error {
			_, err := c.ControllerGetVolume(t.Context(), &csispec.ControllerGetVolumeRequest{})
			return err
		},
		"validate": func() error {
			_, err := c.ValidateVolumeCapabilities(t.Context(), &csispec.ValidateVolumeCapabilitiesRequest{})
			return err
		},
		"halves": func() error {
			_, err := c.CreateVolume(t.Context(), &csispec.CreateVolumeRequest{Name: "x", VolumeCapabilities: half})
			return err
		},
		"half a stage": func() error {
			_, err := n.NodeStageVolume(t.Context(), &csispec.NodeStageVolumeRequest{VolumeId: claimID, StagingTargetPath: "/x", VolumeCapability: half[0]})
			return err
		},
		"half a publish": func() error {
			_, err := n.NodePublishVolume(t.Context(), &csispec.NodePublishVolumeRequest{VolumeId: claimID, TargetPath: "/x", VolumeCapability: half[1]})
			return err
		},
	}
	for name, call := range calls {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}
