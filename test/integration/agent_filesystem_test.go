package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentFileSystemOfClass asserts that an inline volume has the features and the options of its
// class, and is an empty folder, and that the API server refuses options that are not in the list.
func TestAgentFileSystemOfClass(t *testing.T) {
	testenv.NeedProgram(t, "dumpe2fs")
	n := newNode(t, 2*units.GiB)
	for says, change := range map[string]func(*diskv1alpha1.DiskClassSpec){
		"ext4 volumes cannot be made with":       func(s *diskv1alpha1.DiskClassSpec) { s.MkfsOptions = []string{"-E offset=1048576"} },
		"xfs volumes cannot be made with":        func(s *diskv1alpha1.DiskClassSpec) { s.FSType, s.MkfsOptions = "xfs", []string{"-i 65536"} },
		"volumes cannot be mounted with":         func(s *diskv1alpha1.DiskClassSpec) { s.MountOptions = []string{"noatime", "nobarrier"} },
		"spec.fsFeatures: Unsupported value":     func(s *diskv1alpha1.DiskClassSpec) { s.FSFeatures = "lts_4.19" },
		"spec.mountOptions: Too many":            func(s *diskv1alpha1.DiskClassSpec) { s.MountOptions = slices.Repeat([]string{"noatime"}, 17) },
		"spec.mkfsOptions[0]: Invalid value: \"": func(s *diskv1alpha1.DiskClassSpec) { s.MkfsOptions = []string{""} },
	} {
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name + "-other"}}
		class.Spec.Devices.Paths = []string{"/dev/none"}
		change(&class.Spec)
		if err := n.client.Create(t.Context(), class, client.DryRunAll); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(class, func() {
		class.Spec.FSFeatures = diskv1alpha1.FSFeatures61
		class.Spec.MkfsOptions = []string{"-i 65536", "-I 512"}
		class.Spec.MountOptions = []string{"noatime", "discard"}
	})
	n.start()
	n.ready()
	pod := n.pod("options", "", nil, n.volumeOf("data", "512Mi", "ext4"))
	_, a := n.formatted(pod, "data")
	if err := n.publish(pod, "data"); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(n.target(pod, "data")); err != nil || len(entries) != 0 {
		t.Errorf("the new volume holds %v: %v", entries, err)
	}
	if at, _, err := mounts.At(n.target(pod, "data")); err != nil || !strings.Contains(at.Options, "noatime") || !strings.Contains(at.VFSOptions, "discard") {
		t.Errorf("mounted is %+v: %v", at, err)
	}
	made := strings.Join(strings.Fields(testenv.Run(t, "dumpe2fs", "-h", n.deviceAt(n.disks[0], a.Start))), " ")
	for _, want := range []string{"orphan_file", "metadata_csum_seed", "Inode size: 512", "Inode count: 8192"} {
		if !strings.Contains(made, want) {
			t.Errorf("it is not made with %s: %s", want, made)
		}
	}
	n.unpublish(pod, "data")
	n.delete(pod)
}
