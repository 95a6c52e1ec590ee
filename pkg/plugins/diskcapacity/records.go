package diskcapacity

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
)

// recordsOf reads the records of a bound pod from its annotation. A user can write the annotation. So it is believed
// only if it matches the pod: the volumes are the pod's own, and have exactly the requested sizes. A forged record then
// withholds no more space than the pod will occupy, somewhere on its node. The agent, too, believes a record as a whole
// or not at all.
func recordsOf(pod *corev1.Pod) ([]ledger.Record, error) {
	value, ok := pod.Annotations[diskv1alpha1.AnnotationAllocation]
	if !ok {
		return nil, nil
	}
	record, err := diskv1alpha1.DecodeRecord(value)
	if err != nil {
		return nil, err
	}
	volumes, err := request.FromPod(pod)
	if err != nil {
		return nil, err
	}
	if len(record.Volumes) != len(volumes) {
		return nil, fmt.Errorf("the record has %d volumes, the pod %d", len(record.Volumes), len(volumes))
	}
	records := make([]ledger.Record, len(volumes))
	for i := range volumes {
		place, ok := record.Volume(volumes[i].Name)
		if !ok {
			return nil, fmt.Errorf("the record lacks volume %q", volumes[i].Name)
		}
		if want := volumes[i].Request.Size; place.Length != want {
			return nil, fmt.Errorf("the record gives volume %q %d bytes, the pod asks for %d", volumes[i].Name, place.Length, want)
		}
		records[i] = ledger.Record{
			Partition: volumes[i].Partition, Disk: place.Disk,
			Extent: extent.New(place.Start, place.Length),
		}
	}
	return records, nil
}

// capacityOf reads what a node has published.
func capacityOf(ndc *diskv1alpha1.NodeDiskCapacity) (*ledger.Capacity, error) {
	revision, err := revisionOf(ndc.ResourceVersion)
	if err != nil {
		return nil, err
	}
	c := &ledger.Capacity{Revision: revision, Disks: make([]ledger.Disk, len(ndc.Status.Disks)), Owned: ndc.Spec.OwnedDisks}
	for i := range ndc.Status.Disks {
		d := &ndc.Status.Disks[i]
		out := ledger.Disk{
			ID: d.ID, Class: d.Class, Size: d.Size, Ready: d.State == diskv1alpha1.DiskReady,
			Free:        make([]extent.Extent, len(d.Free)),
			Allocations: make([]ledger.Allocation, len(d.Allocations)),
		}
		for j, e := range d.Free {
			out.Free[j] = extent.New(e.Start, e.Length)
		}
		for j := range d.Allocations {
			a := &d.Allocations[j]
			out.Allocations[j] = ledger.Allocation{
				Partition: a.Partition, Extent: extent.New(a.Start, a.Length), Wiping: a.Phase == diskv1alpha1.PhaseWiping,
			}
		}
		c.Disks[i] = out
	}
	return c, nil
}

// revisionOf parses a resourceVersion, so that revisions can be compared. Since Kubernetes 1.35, the resourceVersions
// of one resource are integers that grow.
func revisionOf(resourceVersion string) (uint64, error) {
	revision, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is not a number", resourceVersion)
	}
	return revision, nil
}
