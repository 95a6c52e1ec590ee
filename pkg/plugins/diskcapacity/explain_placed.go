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

const (
	reasonPlaced = "DiskPlaced"
	// placementBurst is how many seconds' worth of events may be sent at once.
	placementBurst = 10
	// maxNote is how many bytes of an event's note name volumes, of the 1024 that the API server takes.
	maxNote = 1000
)

// placed is what Reserve has done, until the pod is bound.
type placed struct {
	// before is the node as it was before.
	before *ledger.Snapshot
	// records of the volumes that were placed.
	records []ledger.Record
}

// PostBind says where the volumes of a bound pod are. The event is one more write to the API
// server, sent behind our back and not waited for; of a burst of pods most get none, so that the
// scheduler is not slower for it. That it is bound, and where its inline volumes are, the pod says
// itself.
func (p *Plugin) PostBind(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, _ string) {
	data, err := cycle.Read(stateKey)
	if err != nil {
		return // a pod without disk volumes
	}
	s, ok := data.(*state)
	if !ok || s.placed == nil {
		return
	}
	decided(resultBound)
	if p.placements == nil || len(s.placed.records) == 0 {
		return
	}
	if !p.placements.TryAccept() {
		eventsWithheldTotal.Inc()
		return
	}
	p.handle.EventRecorder().Eventf(pod, nil, corev1.EventTypeNormal, reasonPlaced, "Binding", "%s", s.placed.note(s.volumes))
}

// note tells a person the place of each volume and how well it fits there, as far as there is
// space for it.
func (p *placed) note(volumes []request.Volume) string {
	var b strings.Builder
	for i, r := range p.records {
		part := p.place(r, volumes)
		if i > 0 {
			part = "; " + part
		}
		if b.Len()+len(part) > maxNote {
			fmt.Fprintf(&b, "; and %d more", len(p.records)-i)
			break
		}
		b.WriteString(part)
	}
	return b.String()
}

func (p *placed) place(r ledger.Record, volumes []request.Volume) string {
	what, class := "volume", ""
	if i := slices.IndexFunc(volumes, func(v request.Volume) bool { return v.Partition == r.Partition }); i >= 0 {
		what, class = "volume "+volumes[i].Name, volumes[i].Request.Class+" "
		if volumes[i].Claim != "" {
			what = "claim " + volumes[i].Claim
		}
	}
	text := fmt.Sprintf("%s: %s at %s of %sdisk %s", what, bytes(r.Extent.Len()), bytes(r.Extent.Start), class, r.Disk)
	hole, ok := p.hole(r)
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
	return fmt.Sprintf("%s, leaves %s of %s free there", text, bytes(left), bytes(hole.Len()))
}

// hole is the free extent in which the volume was placed; false if it was not free when the node
// was looked at: what was in doubt about an earlier try of the pod is free for nobody else.
func (p *placed) hole(r ledger.Record) (extent.Extent, bool) {
	for i := range p.before.Node.Disks {
		if d := &p.before.Node.Disks[i]; d.ID == r.Disk {
			return d.Free.Holding(r.Extent)
		}
	}
	return extent.Extent{}, false
}

// bytes writes a size exactly.
func bytes(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
