package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// Nodes of TestDevices, and the DiskClasses of their disks.
const (
	// heldNode has a symbolic link as its kubelet's folder.
	heldNode = "held"
	held     = "held"

	// movedNode has its kubelet's folder at another path, a large disk and a small one.
	movedNode = "moved"
	movedRoot = "/var/lib/k0s/kubelet"
	large     = "large"
	small     = "small"
	smallSize = 61 * units.MiB // no other test has loop devices of this size
)

// TestDevices has agents that use all devices of the machine (no --devices), beside other programs that use devices.
// All nodes have the same devices, so each class names its node, and paths or a size that no other device has.
func TestDevices(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "containerd", "runc", "blkid", "mkfs.ext4", "losetup", "delpart", "mkswap", "swapon", "sha256sum")
	testenv.RemoveNewLoops(t)
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: "e2e-devices", Log: os.Stderr, Kubelets: true, Agents: true, Scheduler: true, AllDevices: true,
		AgentArgs: []string{"--orphan-grace=3s", "--eviction-grace=2s", "--v=2"},
		Nodes: []cluster.NodeOptions{
			{Name: heldNode, KubeletDirTarget: "/var/lib/elsewhere/kubelet", Disks: []cluster.DiskOptions{{Size: units.GiB, SectorSize: 4096}}},
			{Name: movedNode, KubeletDir: movedRoot, Disks: []cluster.DiskOptions{{Size: units.GiB}, {Size: smallSize}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(complaints(c.LogDir()), c.Stop()); err != nil {
			t.Error(err)
		}
	})
	ofHeld, ofMoved := c.Nodes()[0].Disks, c.Nodes()[1].Disks
	for name, class := range map[string]*v1alpha1.DiskClass{
		held: diskClass(held, heldNode, ofHeld[0].Path), large: diskClass(large, movedNode, ofMoved[0].Path), small: diskClass(small, movedNode, ofMoved[1].Path),
	} {
		if err := errors.Join(c.Client().Create(t.Context(), class), c.Client().Create(t.Context(), storageClass(name, name, v1alpha1.FSTypeExt4))); err != nil {
			t.Fatal(err)
		}
	}
	err = cluster.Eventually(t.Context(), patience, func(ctx context.Context) error { return inService(ctx, c.Client(), 3) })
	if err != nil {
		t.Fatal(err)
	}
	t.Run("holders", func(t *testing.T) {
		t.Parallel()
		holders(newTenant(t, c))
	})
	t.Run("moved", func(t *testing.T) {
		t.Parallel()
		t.Run("kubelet-dir", func(t *testing.T) { kubeletDir(newTenant(t, c)) })
		t.Run("copies", func(t *testing.T) { copies(newTenant(t, c)) })
		t.Run("other-driver", func(t *testing.T) { otherDriver(t, c) })
	})
}

// diskClass takes blank devices of a node at once, by their paths.
func diskClass(name, node string, paths ...string) *v1alpha1.DiskClass {
	class := &v1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
	class.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}}
	class.Spec.Devices.Paths = paths
	class.Spec.Adoption, class.Spec.NewDeviceGrace = v1alpha1.AdoptAutomatic, &metav1.Duration{}
	return class
}

// ofSize takes every loop device of that size.
func ofSize(class *v1alpha1.DiskClass, size int64) *v1alpha1.DiskClass {
	class.Spec.Devices.Paths = []string{"/dev/loop*"}
	class.Spec.Devices.MinSize, class.Spec.Devices.MaxSize = resource.NewQuantity(size, resource.BinarySI), resource.NewQuantity(size, resource.BinarySI)
	return class
}

// otherDriver asserts that no byte is written to the volumes of another driver. It attaches 100 blank devices that a
// class selects, and formats each three seconds later. The agent is killed and started again meanwhile.
func otherDriver(t *testing.T, c *cluster.Cluster) {
	const (
		volumes = 100
		size    = 43 * units.MiB
		delay   = 3 * time.Second
		grace   = 40 * time.Second
	)
	ctx := t.Context()
	class := ofSize(diskClass("beside", movedNode), size)
	class.Spec.NewDeviceGrace.Duration = grace
	if err := c.Client().Create(ctx, class); err != nil {
		t.Fatal(err)
	}
	images := make([]string, volumes)
	group, programs := errgroup.Group{}, semaphore.NewWeighted(4)
	for i := range volumes {
		switch i {
		case volumes / 4:
			if err := c.KillAgent(movedNode); err != nil {
				t.Fatal(err)
			}
		case volumes / 2:
			if err := c.StartAgent(ctx, movedNode); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Client().Create(ctx, attachment(i)); err != nil {
			t.Fatal(err)
		}
		d, attached := addDisk(t, c, size), time.Now()
		images[i] = d.File
		group.Go(func() error {
			<-time.After(delay) // the time that the driver takes
			if err := programs.Acquire(ctx, 1); err != nil {
				return err
			}
			defer programs.Release(1)
			if err := isHole(d); err != nil {
				return fmt.Errorf("before its driver has written any, %w", err)
			}
			if _, err := c.Exec(ctx, movedNode, "mkfs.ext4", "-q", d.Path); err != nil {
				return err
			}
			if took := time.Since(attached); took >= grace {
				return fmt.Errorf("%s was formatted %s after it was attached, which the grace of %s does not cover", d.Path, took, grace)
			}
			return noTable(d)
		})
	}
	// A device of the same kind that belongs to no driver. The class would take the others as well.
	blank := addDisk(t, c, size)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	before := testenv.Run(t, "sha256sum", images...)
	unchanged := func(when string, taken ...cluster.Disk) {
		t.Helper()
		for _, d := range taken {
			err := cluster.Eventually(ctx, patience, func(ctx context.Context) error { return serves(ctx, c, d) })
			if err != nil {
				t.Fatalf("%s: the device of no driver: %v", when, err)
			}
		}
		if now := testenv.Run(t, "sha256sum", images...); now != before {
			t.Errorf("%s, the volumes of the other driver are not as it has left them:\n%s\n%s", when, before, now)
		}
		ndc := &v1alpha1.NodeDiskCapacity{}
		if err := c.Client().Get(ctx, client.ObjectKey{Name: movedNode}, ndc); err != nil {
			t.Fatal(err)
		}
		disks := slices.DeleteFunc(ndc.Status.Disks, func(d v1alpha1.Disk) bool { return d.Class != class.Name })
		if len(disks) != len(taken) {
			t.Errorf("%s, disks of the class are %+v, want %+v", when, disks, taken)
		}
	}
	unchanged("after the grace period", blank)
	// Formatted devices do not depend on the grace period.
	atOnce := client.MergeFrom(class.DeepCopy())
	class.Spec.NewDeviceGrace.Duration = 0
	if err := errors.Join(c.Client().Patch(ctx, class, atOnce), c.KillAgent(movedNode), c.StartAgent(ctx, movedNode)); err != nil {
		t.Fatal(err)
	}
	unchanged("after a restart of the agent", blank, addDisk(t, c, size))
}

// attachment is a volume that another driver attaches to the node.
func attachment(i int) *storagev1.VolumeAttachment {
	volume := fmt.Sprintf("beside-%d", i)
	a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: volume}}
	a.Spec.Attacher, a.Spec.NodeName, a.Spec.Source.PersistentVolumeName = "beside.example.org", movedNode, &volume
	return a
}

// addDisk attaches a blank device to the machine, until the cluster stops.
func addDisk(t *testing.T, c *cluster.Cluster, size int64) cluster.Disk {
	t.Helper()
	d, err := c.AddDisk(movedNode, cluster.DiskOptions{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// isHole returns nil if nothing was ever written to the disk.
func isHole(d cluster.Disk) error {
	at := int64(-1)
	err := scanImage(d.File, whole(d), func(offset int64, _ []byte) bool {
		at = offset
		return false
	})
	if err == nil && at >= 0 {
		err = fmt.Errorf("%s has data at %d", d.Path, at)
	}
	return err
}

// noTable returns nil if no partition table is anywhere on the disk.
func noTable(d cluster.Disk) error {
	found := false
	err := scanImage(d.File, whole(d), func(_ int64, data []byte) bool {
		found = bytes.Contains(data, []byte("EFI PART"))
		return !found
	})
	if err == nil && found {
		err = fmt.Errorf("%s has the header of a partition table", d.Path)
	}
	return err
}

// serves returns nil when the device is a disk in service on its node.
func serves(ctx context.Context, c *cluster.Cluster, d cluster.Disk) error {
	ndc := &v1alpha1.NodeDiskCapacity{}
	if err := c.Client().Get(ctx, client.ObjectKey{Name: movedNode}, ndc); err != nil {
		return err
	}
	for _, disk := range ndc.Status.Disks {
		if disk.Device == filepath.Base(d.Path) && disk.State == v1alpha1.DiskReady {
			return nil
		}
	}
	for _, device := range ndc.Status.Devices {
		if device.Name == filepath.Base(d.Path) {
			return fmt.Errorf("%s is %s: %s", d.Path, device.State, strings.Join(device.Reasons, "; "))
		}
	}
	return fmt.Errorf("%s is not listed", d.Path)
}
