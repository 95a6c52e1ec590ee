package integration

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// csiVolume is a volume that a sidecar had made, and its way into pods of the node.
type csiVolume struct {
	*node
	volume     *csispec.Volume
	capability *csispec.VolumeCapability
	staging    string
}

func (n *node) controllerService() csispec.ControllerClient {
	n.t.Helper()
	connection, err := grpc.NewClient("unix://"+n.options.CSISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { connection.Close() })
	return csispec.NewControllerClient(connection)
}

// provision makes a volume; fsType is empty for a raw block volume.
func (n *node) provision(name, fsType string, size int64) *csiVolume {
	n.t.Helper()
	v := &csiVolume{node: n, staging: filepath.Join(n.dir, name, "globalmount"), capability: &csispec.VolumeCapability{
		AccessMode: &csispec.VolumeCapability_AccessMode{Mode: csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	}}
	if fsType == "" {
		v.capability.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
	} else {
		v.capability.AccessType = &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: fsType}}
	}
	response, err := n.controllerService().CreateVolume(n.t.Context(), &csispec.CreateVolumeRequest{
		Name: name, Parameters: map[string]string{diskv1alpha1.AttributeClass: n.name},
		VolumeCapabilities: []*csispec.VolumeCapability{v.capability}, CapacityRange: &csispec.CapacityRange{RequiredBytes: size},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	v.volume = response.Volume
	n.t.Cleanup(func() {
		for _, target := range []string{v.targetOf("one"), v.targetOf("two"), v.staging} {
			for syscall.Unmount(target, 0) == nil {
				n.t.Logf("%s was still mounted", target)
			}
		}
	})
	return v
}

func (v *csiVolume) targetOf(pod string) string {
	return filepath.Join(filepath.Dir(v.staging), pod, "mount")
}

// must holds that a call says the code.
func (v *csiVolume) must(what string, err error, code codes.Code) {
	v.t.Helper()
	if status.Code(err) != code {
		v.t.Fatalf("%s: %v, want %v", what, err, code)
	}
}

// folder makes the folder that a path lies in, as the kubelet does.
func (v *csiVolume) folder(path string) {
	v.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		v.t.Fatal(err)
	}
}

func (v *csiVolume) stage() {
	v.t.Helper()
	v.folder(v.staging)
	_, err := v.csi().NodeStageVolume(v.t.Context(), &csispec.NodeStageVolumeRequest{
		VolumeId: v.volume.VolumeId, StagingTargetPath: v.staging, VolumeCapability: v.capability, VolumeContext: v.volume.VolumeContext,
	})
	v.must("stage", err, codes.OK)
}

func (v *csiVolume) unstage() {
	v.t.Helper()
	_, err := v.csi().NodeUnstageVolume(v.t.Context(), &csispec.NodeUnstageVolumeRequest{VolumeId: v.volume.VolumeId, StagingTargetPath: v.staging})
	v.must("unstage", err, codes.OK)
}

func (v *csiVolume) publishTo(pod string) {
	v.t.Helper()
	v.folder(v.targetOf(pod))
	_, err := v.csi().NodePublishVolume(v.t.Context(), &csispec.NodePublishVolumeRequest{
		VolumeId: v.volume.VolumeId, StagingTargetPath: v.staging, TargetPath: v.targetOf(pod), VolumeCapability: v.capability, VolumeContext: v.volume.VolumeContext,
	})
	v.must("publish", err, codes.OK)
}

func (v *csiVolume) unpublishFrom(pod string) {
	v.t.Helper()
	_, err := v.csi().NodeUnpublishVolume(v.t.Context(), &csispec.NodeUnpublishVolumeRequest{VolumeId: v.volume.VolumeId, TargetPath: v.targetOf(pod)})
	v.must("unpublish", err, codes.OK)
}

// expandTo asks for a larger volume as the external-resizer does, and then as the kubelet.
func (v *csiVolume) expandTo(size int64, pod string) error {
	v.t.Helper()
	capacity := &csispec.CapacityRange{RequiredBytes: size}
	response, err := v.controllerService().ControllerExpandVolume(v.t.Context(), &csispec.ControllerExpandVolumeRequest{
		VolumeId: v.volume.VolumeId, VolumeCapability: v.capability, CapacityRange: capacity,
	})
	v.must("expand", err, codes.OK)
	if response.CapacityBytes != size {
		v.t.Errorf("expanded to %d, want %d", response.CapacityBytes, size)
	}
	_, err = v.csi().NodeExpandVolume(v.t.Context(), &csispec.NodeExpandVolumeRequest{
		VolumeId: v.volume.VolumeId, VolumePath: v.targetOf(pod), StagingTargetPath: v.staging, VolumeCapability: v.capability, CapacityRange: capacity,
	})
	return err
}

func (v *csiVolume) total(pod string) int64 {
	v.t.Helper()
	stats, err := v.csi().NodeGetVolumeStats(v.t.Context(), &csispec.NodeGetVolumeStatsRequest{VolumeId: v.volume.VolumeId, VolumePath: v.targetOf(pod)})
	if err != nil {
		v.t.Fatal(err)
	}
	if stats.VolumeCondition.Abnormal {
		v.t.Errorf("condition is %v", stats.VolumeCondition)
	}
	return stats.Usage[0].Total
}

// A volume grows on a disk while a pod writes to it, and keeps what was written; an agent
// that restarts meanwhile finds it as it was.
func TestAgentCSIExpand(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	for _, fsType := range []string{diskv1alpha1.FSTypeXFS, diskv1alpha1.FSTypeExt4, ""} {
		size := map[string]int64{diskv1alpha1.FSTypeXFS: 304 * units.MiB}[fsType]
		size = max(size, 64*units.MiB)
		v := n.provision("volume"+fsType, fsType, size)
		v.stage()
		v.publishTo("one")
		file := v.targetOf("one")
		if fsType != "" {
			file = filepath.Join(file, "file")
		}
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("data"); err != nil {
			t.Fatal(err)
		}
		n.stop()
		n.start()
		n.ready()
		v.stage()
		v.publishTo("one")
		before := v.total("one")
		err = v.expandTo(size*2, "one")
		if fsType == diskv1alpha1.FSTypeExt4 && status.Code(err) == codes.FailedPrecondition {
			// Without CAP_SYS_RESOURCE the kernel refuses; then the next pod gets it larger.
			if _, err := f.WriteString(" and more"); err != nil {
				t.Errorf("the pod cannot write any more: %v", err)
			}
			f.Close()
			v.unpublishFrom("one")
			v.unstage()
			v.stage()
			v.publishTo("one")
			if f, err = os.Open(file); err != nil {
				t.Fatal(err)
			}
			err = v.expandTo(size*2, "one")
		}
		v.must("expand on the node", err, codes.OK)
		if grown := v.total("one") - before; grown < size*9/10 {
			t.Errorf("%q: it has grown by %d bytes, not by %d", fsType, grown, size)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Error(err)
		}
		if data, err := io.ReadAll(io.LimitReader(f, 4)); err != nil || string(data) != "data" {
			t.Errorf("%q: the pod reads %q: %v", fsType, data, err)
		}
		f.Close()
		v.unpublishFrom("one")
		v.unstage()
		if _, err := n.controllerService().DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{VolumeId: v.volume.VolumeId}); err != nil {
			t.Error(err)
		}
	}
	n.released()
}

// What is mounted is not deleted, and what cannot grow says how far it could.
func TestAgentCSIRefusals(t *testing.T) {
	n := newNode(t, 1*units.GiB)
	n.start()
	n.ready()
	first := n.provision("first", diskv1alpha1.FSTypeExt4, 128*units.MiB)
	second := n.provision("second", diskv1alpha1.FSTypeExt4, 128*units.MiB)
	first.stage()
	_, err := n.controllerService().DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{VolumeId: first.volume.VolumeId})
	first.must("delete a mounted volume", err, codes.FailedPrecondition)

	// One of the two lies in front of the other.
	refused := 0
	for _, v := range []*csiVolume{first, second} {
		_, err := n.controllerService().ControllerExpandVolume(t.Context(), &csispec.ControllerExpandVolumeRequest{
			VolumeId: v.volume.VolumeId, CapacityRange: &csispec.CapacityRange{RequiredBytes: 160 * units.MiB},
		})
		if status.Code(err) == codes.OutOfRange && strings.Contains(err.Error(), "possible") {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused != 1 {
		t.Errorf("%d of two volumes one behind the other could not grow, want 1", refused)
	}
	_, err = n.controllerService().CreateVolume(t.Context(), &csispec.CreateVolumeRequest{
		Name: "large", Parameters: map[string]string{diskv1alpha1.AttributeClass: n.name},
		VolumeCapabilities: []*csispec.VolumeCapability{first.capability}, CapacityRange: &csispec.CapacityRange{RequiredBytes: 100 * units.GiB},
	})
	first.must("a volume larger than the disk", err, codes.ResourceExhausted)
	_, err = n.controllerService().CreateVolume(t.Context(), &csispec.CreateVolumeRequest{
		Name: "other", Parameters: map[string]string{diskv1alpha1.AttributeClass: "no-such-class"},
		VolumeCapabilities: []*csispec.VolumeCapability{first.capability},
	})
	if err == nil || !strings.Contains(err.Error(), "no-such-class") {
		t.Errorf("an unknown class: %v", err)
	}
	first.unstage()
	for _, v := range []*csiVolume{first, second} {
		for range 2 {
			if _, err := n.controllerService().DeleteVolume(context.Background(), &csispec.DeleteVolumeRequest{VolumeId: v.volume.VolumeId}); err != nil {
				t.Error(err)
			}
		}
	}
	n.released()
}
