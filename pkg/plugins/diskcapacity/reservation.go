package diskcapacity

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
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
	// further are the further pieces of the records, by their first partition.
	further map[string][]ledger.Record
}

// newReservation keeps what Reserve has recorded: the volumes that were placed, then those that had their place, then
// further pieces.
func newReservation(before *ledger.Snapshot, volumes []request.Volume, records []ledger.Record, placed, all int) *reservation {
	r := &reservation{snapshot: before, records: records[:placed], volumes: volumes}
	if len(records) == all {
		return r
	}
	r.further = map[string][]ledger.Record{}
	for _, first := range r.records {
		for _, partition := range diskv1alpha1.PieceIDs(first.Partition) {
			if i := slices.IndexFunc(records[all:], func(piece ledger.Record) bool { return piece.Partition == partition }); i >= 0 {
				r.further[first.Partition] = append(r.further[first.Partition], records[all+i])
			}
		}
	}
	return r
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
	if pieces := p.further[r.Partition]; len(pieces) > 0 {
		return describePieces(what, class, append([]ledger.Record{r}, pieces...))
	}
	text := fmt.Sprintf("%s: %s at %s of %sdisk %s", what, exactSize(r.Extent.Len()), exactSize(r.Extent.Start), class, r.Disk)
	hole, ok := p.freeExtent(r)
	if !ok {
		return text
	}
	left := hole.Len()
	for _, first := range p.records {
		for _, other := range append([]ledger.Record{first}, p.further[first.Partition]...) {
			if other.Disk == r.Disk && hole.Contains(other.Extent) {
				left -= other.Extent.Len()
			}
		}
	}
	if left == 0 {
		return text + ", fills a free extent exactly"
	}
	return fmt.Sprintf("%s, leaves %s of %s free there", text, exactSize(left), exactSize(hole.Len()))
}

// describePieces describes a volume that no free extent holds.
func describePieces(what, class string, pieces []ledger.Record) string {
	var sum int64
	places := make([]string, len(pieces))
	for i, piece := range pieces {
		sum += piece.Extent.Len()
		places[i] = exactSize(piece.Extent.Len()) + " at " + exactSize(piece.Extent.Start)
	}
	return fmt.Sprintf("%s: %s in %d pieces of %sdisk %s, because no free extent holds it: %s",
		what, exactSize(sum), len(pieces), class, pieces[0].Disk, strings.Join(places, ", "))
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
