package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/units"
)

// place is where a volume is: as its node has published it, and as this machine has it.
type place struct {
	node       string
	disk       v1alpha1.Disk
	allocation v1alpha1.Allocation
	machine    cluster.Disk
}

func (p place) String() string {
	return fmt.Sprintf("%d+%d of %s on %s", p.allocation.Start, p.allocation.Length, p.disk.Device, p.node)
}

// published returns what a node has published, and fails the test if it is not sound.
func (e *tenant) published(ctx context.Context, node string) (*v1alpha1.NodeDiskCapacityStatus, error) {
	ndc := &v1alpha1.NodeDiskCapacity{}
	if err := e.client.Get(ctx, client.ObjectKey{Name: node}, ndc); err != nil {
		return nil, err
	}
	if err := sound(&ndc.Status); err != nil {
		e.t.Errorf("node %s published nonsense: %v", node, err)
	}
	return &ndc.Status, nil
}

// find waits until the volume of a pod that runs is published, and returns its place.
func (e *tenant) find(pod *corev1.Pod, volume string) place {
	e.t.Helper()
	partition := v1alpha1.PartitionID(v1alpha1.InlineVolumeID(pod.UID, volume))
	return e.findPartition("volume "+volume+" of "+pod.Name, pod.Spec.NodeName, partition)
}

// findPartition waits until a partition is published as ready, and returns its place.
func (e *tenant) findPartition(what, onNode, partition string) place {
	e.t.Helper()
	p := place{node: onNode}
	e.eventually(what+" is published", func(ctx context.Context) error {
		status, err := e.published(ctx, p.node)
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			for _, a := range d.Allocations {
				if a.Partition == partition && a.Phase == v1alpha1.PhaseFormatted {
					p.disk, p.allocation = d, a
					return nil
				}
			}
		}
		return fmt.Errorf("node %s does not have it as Formatted: %+v", p.node, status.Disks)
	})
	node, err := e.cluster.Node(p.node)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, d := range node.Disks {
		if filepath.Base(d.Path) == p.disk.Device {
			p.machine = d
			return p
		}
	}
	e.t.Fatalf("node %s has no device %s", p.node, p.disk.Device)
	return p
}

// recorded is where the scheduler put the volume.
func (e *tenant) recorded(pod *corev1.Pod, volume string) v1alpha1.RecordVolume {
	e.t.Helper()
	record, err := v1alpha1.DecodeRecord(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err != nil {
		e.t.Fatalf("record of pod %s: %v", pod.Name, err)
	}
	v, ok := record.Volume(volume)
	if !ok {
		e.t.Fatalf("the record of pod %s does not name volume %s: %+v", pod.Name, volume, record)
	}
	return v
}

// asRecorded fails the test unless the volume is where the scheduler put it.
func (e *tenant) asRecorded(pod *corev1.Pod, volume string, p place) {
	e.t.Helper()
	if r := e.recorded(pod, volume); r.Disk != p.disk.ID || r.Extent != p.allocation.Extent {
		e.t.Errorf("pod %s: the scheduler recorded %+v, the node published %+v of disk %s", pod.Name, r, p.allocation, p.disk.ID)
	}
}

// device is the device that a pod has mounted on a directory.
func (e *tenant) device(pod *corev1.Pod, directory string) string {
	e.t.Helper()
	device, _, _ := strings.Cut(e.exec(pod, "grep ' "+directory+" ' /proc/mounts"), " ")
	return device
}

// isPartition fails the test unless the device is the partition of that place with that file system, for the kernel and
// for blkid.
func (e *tenant) isPartition(device, fsType string, p place) {
	e.t.Helper()
	if !strings.HasPrefix(device, p.machine.Path+"p") {
		e.t.Errorf("%s is not a partition of %s", device, p.machine.Path)
	}
	out, err := e.cluster.Exec(e.t.Context(), p.node, "blkid", "-p", "-o", "export", device)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, want := range []string{"PART_ENTRY_UUID=" + p.allocation.Partition, "UUID=" + p.allocation.Partition, "TYPE=" + fsType, "PART_ENTRY_SCHEME=gpt"} {
		if !strings.Contains("\n"+out, "\n"+want+"\n") {
			e.t.Errorf("blkid of %s does not say %s: %s", device, want, out)
		}
	}
	sysfs := filepath.Join("/sys/class/block", filepath.Base(device))
	for attribute, want := range map[string]int64{"start": p.allocation.Start, "size": p.allocation.Length} {
		// sysfs counts in units of 512 bytes, for every sector size.
		if got := readTrimmed(e.t, filepath.Join(sysfs, attribute)); got != strconv.FormatInt(want/512, 10) {
			e.t.Errorf("%s of %s is %s units, published are %d bytes", attribute, device, got, want)
		}
	}
}

// isFree waits until the place is published as free, and then asserts that nothing is left there.
func (e *tenant) isFree(p place) {
	e.t.Helper()
	e.eventually(p.String()+" is free again", func(ctx context.Context) error {
		status, err := e.published(ctx, p.node)
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			for _, f := range d.Free {
				if d.ID == p.disk.ID && f.Start <= p.allocation.Start && p.allocation.Start+p.allocation.Length <= f.Start+f.Length {
					return nil
				}
			}
		}
		return fmt.Errorf("free are %+v", status.Disks)
	})
	if at, found := firstNonZero(e.t, p.machine.File, p.allocation.Extent); found {
		e.t.Errorf("%v is published as free, and has a byte at %d that is not zero", p, at)
	}
	if device := e.partition(p); device != "" {
		e.t.Errorf("%v is published as free, and the kernel has %s there", p, device)
	}
}

// partition is the kernel's device for the place. It is empty if there is none.
func (e *tenant) partition(p place) string {
	e.t.Helper()
	attached, err := filepath.Glob("/sys/class/block/" + p.disk.Device + "p*/start")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, start := range attached {
		// sysfs counts in units of 512 bytes, for every sector size.
		if text, err := os.ReadFile(start); err == nil && strings.TrimSpace(string(text)) == strconv.FormatInt(p.allocation.Start/512, 10) {
			return "/dev/" + filepath.Base(filepath.Dir(start))
		}
	}
	return ""
}

// firstNonZero reads the raw image of a disk, without any code of Berth.
func firstNonZero(t *testing.T, image string, x v1alpha1.Extent) (int64, bool) {
	t.Helper()
	zeros := make([]byte, units.MiB)
	at := int64(-1)
	scan(t, image, x, func(offset int64, data []byte) bool {
		if at < 0 && !bytes.Equal(data, zeros[:len(data)]) {
			at = offset
		}
		return at < 0
	})
	return at, at >= 0
}

// contains reports whether the text is in an extent of a disk's raw image.
func contains(t *testing.T, image string, x v1alpha1.Extent, text string) bool {
	t.Helper()
	found := false
	scan(t, image, x, func(_ int64, data []byte) bool {
		found = bytes.Contains(data, []byte(text))
		return !found
	})
	return found
}

// scan is scanImage for the test's own goroutine.
func scan(t *testing.T, image string, x v1alpha1.Extent, visit func(offset int64, data []byte) bool) {
	t.Helper()
	if err := scanImage(image, x, visit); err != nil {
		t.Fatal(err)
	}
}

// scanImage calls visit with the parts of the image's extent that are not holes, as long as visit returns true. A part
// is at most a MiB.
func scanImage(image string, x v1alpha1.Extent, visit func(offset int64, data []byte) bool) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := make([]byte, units.MiB)
	for offset, end := x.Start, x.Start+x.Length; offset < end; {
		data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := f.ReadAt(buffer[:min(units.MiB, end-data)], data)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 || !visit(data, buffer[:n]) {
			return nil
		}
		offset = data + int64(n)
	}
	return nil
}

// whole is all of a disk.
func whole(d cluster.Disk) v1alpha1.Extent { return v1alpha1.Extent{Length: d.Size} }

// released waits until the volume is not published any more.
func (e *tenant) released(p place) {
	e.t.Helper()
	e.eventually("the volume at "+p.String()+" is gone", func(ctx context.Context) error {
		status, err := e.published(ctx, p.node)
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			for _, a := range d.Allocations {
				if a.Partition == p.allocation.Partition {
					return fmt.Errorf("it is in phase %s", a.Phase)
				}
			}
		}
		return nil
	})
}
