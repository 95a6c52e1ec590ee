package diskcapacity

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
)

// reservation is what Reserve has done, until the pod is bound.
type reservation struct {
	// snapshot is the node before Reserve.
	snapshot *ledger.Snapshot
	// records of the volumes that were placed. volumes are those that the pod requests.
	records []ledger.Record
	volumes []request.Volume
}

// PostBind ends what Reserve began. The event Scheduled has been sent by then.
func (p *Plugin) PostBind(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, _ string) {
	if p.forgetReservation(cycle, pod) {
		countDecision(resultBound)
	}
}

// forgetReservation forgets what Reserve has done, and reports whether there was anything.
func (p *Plugin) forgetReservation(cycle fwk.CycleState, pod *corev1.Pod) bool {
	s, err := readState(cycle)
	if err != nil || s.reservation == nil {
		return false
	}
	s.reservation = nil
	p.feed.reservations.Delete(pod.UID)
	return true
}

// DescribePlaces describes the place of each volume of a pod that is being bound, and how well it fits there. It has at
// most so many bytes, and is empty for a pod without disk volumes. kube-scheduler sends an event about each pod that it
// has bound: a second event would be one more write for each pod.
func (s *Shared) DescribePlaces(pod *corev1.Pod, most int) string {
	data, ok := s.feed.reservations.Load(pod.UID)
	if !ok {
		return ""
	}
	return data.(*reservation).describe(most)
}

// bytesForMore is for the text that says how many volumes are left out.
const bytesForMore = len("; and 256 more")

// describe describes the place of each volume, as far as there is space for it.
func (p *reservation) describe(most int) string {
	var b strings.Builder
	for i, r := range p.records {
		part := p.describeVolume(r)
		if i > 0 {
			part = "; " + part
		}
		if b.Len()+len(part)+bytesForMore > most {
			if i > 0 {
				fmt.Fprintf(&b, "; and %d more", len(p.records)-i)
			}
			break
		}
		b.WriteString(part)
	}
	return b.String()
}

// describeVolume describes the place of one volume, and what it leaves of the free extent.
func (p *reservation) describeVolume(r ledger.Record) string {
	what, class := "volume", ""
	if i := slices.IndexFunc(p.volumes, func(v request.Volume) bool { return v.Partition == r.Partition }); i >= 0 {
		what, class = "volume "+p.volumes[i].Name, p.volumes[i].Request.Class+" "
		if p.volumes[i].Claim != "" {
			what = "claim " + p.volumes[i].Claim
		}
	}
	text := fmt.Sprintf("%s: %s at %s of %sdisk %s", what, exactSize(r.Extent.Len()), exactSize(r.Extent.Start), class, r.Disk)
	hole, ok := p.freeExtent(r)
	if !ok {
		return text
	}
	left := hole.Len()
	for _, other := range p.records {
		if other.Disk == r.Disk && hole.Contains(other.Extent) {
			left -= other.Extent.Len()
		}
	}
	if left == 0 {
		return text + ", fills a free extent exactly"
	}
	return fmt.Sprintf("%s, leaves %s of %s free there", text, exactSize(left), exactSize(hole.Len()))
}

// freeExtent returns the free extent in which the volume was placed; false if it was not free before Reserve. The space
// of an earlier try in doubt is free for the pod itself and for no other.
func (p *reservation) freeExtent(r ledger.Record) (extent.Extent, bool) {
	for i := range p.snapshot.Node.Disks {
		if d := &p.snapshot.Node.Disks[i]; d.ID == r.Disk {
			return d.Free.Holding(r.Extent)
		}
	}
	return extent.Extent{}, false
}

// exactSize writes a size exactly.
func exactSize(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
