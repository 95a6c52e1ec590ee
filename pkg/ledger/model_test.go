package ledger

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
)

// world is a second, simple implementation: a cluster of one node with one disk, where the owner of every MiB is noted.
// Its API objects change one after the other. The ledger gets the changes late, out of order between pods and
// capacities, and more than once.
type world struct {
	rng  *rand.Rand
	size int // MiB

	// disk is the state on the node: the pod whose volume a MiB belongs to, a number below 0 for the volume of a claim,
	// or 0.
	disk []int
	// wiping are the volumes of claims that are being wiped, as they are on disk.
	wiping map[int]bool
	// versions of the capacity as published, the last one last.
	capacities []*Capacity
	// pods in the API: bound pods with their record.
	pods map[int]*bound
	next int
	// volumes in the API: PersistentVolumes.
	volumes []*volume
	// nominations is true when pods are placed beside nominated ones. There are no claims then.
	nominations bool
	// pieces is true when nearly every change is one of a volume that gets pieces.
	pieces bool

	// sawMany is how often a volume got its second further piece, sawMoved how often one with pieces was moved.
	sawMany, sawMoved int

	ledger *Ledger
	// pending are the events that were not delivered to the ledger yet.
	pending []func()
}

type bound struct {
	id         int
	start, end int // MiB
	realized   bool
	deleted    bool
	wiped      bool
}

const nodeName, diskID, class = "n1", "d1", "ssd"

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), size: 24, pods: map[int]*bound{}, wiping: map[int]bool{}, ledger: New()}
	w.disk = make([]int, w.size)
	w.publish()
	return w
}

func partition(id int) string {
	if id < 0 {
		return fmt.Sprintf("v%d", -id)
	}
	return fmt.Sprintf("p%d", id)
}
func uid(id int) string { return fmt.Sprintf("u%d", id) }
func mib(start, end int) extent.Extent {
	return extent.Extent{Start: int64(start+1) << 20, End: int64(end+1) << 20}
}

// publish makes a new version of the capacity from the disk.
func (w *world) publish() {
	d := Disk{ID: diskID, Class: class, Ready: true, Size: int64(w.size+1) << 20}
	for at := 0; at < w.size; {
		end := at + 1
		for end < w.size && w.disk[end] == w.disk[at] {
			end++
		}
		if w.disk[at] == 0 {
			d.Free = append(d.Free, mib(at, end))
		} else {
			d.Allocations = append(d.Allocations, Allocation{Partition: partition(w.disk[at]), Extent: mib(at, end), Wiping: w.wiping[w.disk[at]]})
		}
		at = end
	}
	c := &Capacity{Revision: uint64(len(w.capacities) + 1), Disks: []Disk{d}}
	w.capacities = append(w.capacities, c)
	w.queueEvent(func() { w.ledger.SetCapacity(nodeName, c) })
}

// queueEvent queues an event. deliverOne and settle deliver the events in random order.
func (w *world) queueEvent(event func()) { w.pending = append(w.pending, event) }

// queuePodEvent queues an event about a pod. As in the plugin, what is folded in is the state when it is delivered, not
// when it was sent.
func (w *world) queuePodEvent(id int) {
	w.queueEvent(func() {
		p := w.pods[id]
		if p == nil || p.deleted {
			w.ledger.DeletePod(uid(id))
			return
		}
		w.ledger.SetPod(uid(id), nodeName, []Record{{partition(id), diskID, mib(p.start, p.end)}})
	})
}

func (w *world) deliverOne() {
	if len(w.pending) == 0 {
		return
	}
	i := w.rng.IntN(len(w.pending))
	event := w.pending[i]
	w.pending = slices.Delete(w.pending, i, i+1)
	event()
	if w.rng.IntN(4) == 0 {
		event() // folded in twice: by a hint and by the watch
	}
}

// step makes one change in the cluster, or delivers one event.
func (w *world) step(t *testing.T) {
	what := w.rng.IntN(10)
	if w.nominations && what >= 3 && what <= 5 {
		what = 0
	}
	if w.pieces && what > 3 {
		what = []int{4, 4, 4, 9, 9, 9}[what-4]
	}
	switch what {
	case 0:
		w.schedule(t)
	case 1:
		w.realize()
	case 2:
		w.remove()
	case 3:
		w.claim(t)
	case 4:
		w.changeVolume(t)
	case 5:
		w.changeVolume(t)
	default:
		w.deliverOne()
	}
}

// schedule reserves for a new pod, and binds it or not.
func (w *world) schedule(t *testing.T) {
	w.next++
	id, size := w.next, 1+w.rng.IntN(5)
	var nominations Nominations
	if w.nominations {
		nominations = w.nominate()
	}
	served := w.served(nominations)
	records, err := w.ledger.ReserveWithNominations(uid(id), nodeName, wants([]string{partition(id)}, []placement.Request{{Class: class, Size: int64(size) << 20}}), nominations)
	if err != nil {
		return
	}
	if err := w.fitTogether(nominations); served && err != nil {
		t.Fatalf("the nominated pods would get their place before %v was reserved, and not after it: %v: %+v", records, err, nominations)
	}
	start := w.checkNotTaken(t, records[0].Extent, fmt.Sprint("pod ", id))
	switch outcome := w.rng.IntN(10); {
	case outcome < 6: // bound, and Bind says so
		w.bind(id, start, size)
	case outcome < 8: // refused
		w.ledger.Forget(uid(id))
		w.ledger.Forget(uid(id))
	case outcome < 9: // bound, but Bind failed
		w.bind(id, start, size)
		w.ledger.Doubt(uid(id))
		w.ledger.Forget(uid(id))
	default: // not bound, and the scheduler cannot know; the pod is deleted later
		w.ledger.Doubt(uid(id))
		w.ledger.Forget(uid(id))
		w.queuePodEvent(id)
	}
}

// nominate invents nominated pods that wait for the end of some of the pods on the node.
func (w *world) nominate() Nominations {
	nominations := Nominations{Terminating: map[string]struct{}{}}
	for range 1 + w.rng.IntN(2) {
		nominations.Requests = append(nominations.Requests, []placement.Request{{Class: class, Size: int64(1+w.rng.IntN(12)) << 20}})
	}
	for _, p := range w.pods {
		if w.rng.IntN(2) == 0 {
			nominations.Terminating[partition(p.id)] = struct{}{}
		}
	}
	return nominations
}

// later is the node after the end of all pods that are ending there.
func (w *world) later(nominations Nominations) *placement.Node {
	s := w.ledger.Snapshot(nodeName)
	ended := maps.Clone(nominations.Terminating)
	if ended == nil {
		ended = map[string]struct{}{}
	}
	maps.Copy(ended, s.Wiping())
	return s.Without(ended)
}

// served reports whether each of the nominated pods gets a place, in their order: now, or later.
func (w *world) served(nominations Nominations) bool {
	now, later := w.ledger.Snapshot(nodeName).Node, w.later(nominations)
	for _, requests := range nominations.Requests {
		plan, err := placement.Plan(nil, now, requests)
		if err != nil {
			plan, err = placement.Plan(nil, later, requests)
		}
		if err != nil {
			return false
		}
		now, later = SubtractPlan(now, plan), SubtractPlan(later, plan)
	}
	return true
}

// fitTogether returns why the nominated pods have no place when all of those pods have ended.
func (w *world) fitTogether(nominations Nominations) error {
	all := slices.Concat(nominations.Requests...)
	if len(all) == 0 {
		return nil
	}
	_, err := placement.Plan(nil, w.later(nominations), all)
	return err
}

// checkNotTaken asserts the invariant: what is reserved belongs to no bound pod and no volume.
func (w *world) checkNotTaken(t *testing.T, e extent.Extent, owner string) (start int) {
	start, end := int(e.Start>>20)-1, int(e.End>>20)-1
	for _, p := range w.pods {
		if !p.deleted && start < p.end && p.start < end && !p.wiped {
			t.Fatalf("[%d,%d) reserved for %s, but pod %d has [%d,%d)", start, end, owner, p.id, p.start, p.end)
		}
	}
	for _, v := range w.volumes {
		if !v.gone && start < v.end && v.start < end {
			t.Fatalf("[%d,%d) reserved for %s, but volume %d has [%d,%d)", start, end, owner, v.id, v.start, v.end)
		}
		for _, r := range slices.Concat(v.pieces, v.plannedPieces) {
			if !v.gone && mib(start, end).Overlaps(r.Extent) {
				t.Fatalf("[%d,%d) reserved for %s, but volume %d has the piece %v", start, end, owner, v.id, r.Extent)
			}
		}
		for _, m := range []*Move{v.move, v.planned} {
			if m != nil && !v.gone && mib(start, end).Overlaps(m.Extent) {
				t.Fatalf("[%d,%d) reserved for %s, but volume %d is moved to %v", start, end, owner, v.id, m.Extent)
			}
		}
	}
	return start
}

func (w *world) bind(id, start, size int) {
	w.pods[id] = &bound{id: id, start: start, end: start + size}
	w.queuePodEvent(id)
}

func (w *world) some(ok func(*bound) bool) *bound {
	var ids []int
	for id, p := range w.pods {
		if ok(p) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return w.pods[ids[w.rng.IntN(len(ids))]]
}

// realize writes a bound pod's volume on the disk. If a volume that is being wiped has its place, the node waits.
func (w *world) realize() {
	p := w.some(func(p *bound) bool { return !p.realized && !p.deleted })
	if p == nil {
		return
	}
	for at := p.start; at < p.end; at++ {
		if w.disk[at] != 0 {
			return
		}
	}
	for at := p.start; at < p.end; at++ {
		w.disk[at] = p.id
	}
	p.realized = true
	w.publish()
}

// remove ends a pod: the volume is wiped before the pod object is deleted, or after.
func (w *world) remove() {
	if p := w.some(func(p *bound) bool { return p.deleted && p.realized && !p.wiped }); p != nil && w.rng.IntN(2) == 0 {
		w.wipe(p)
		return
	}
	p := w.some(func(p *bound) bool { return !p.deleted })
	if p == nil {
		return
	}
	if p.realized && w.rng.IntN(2) == 0 {
		w.wipe(p)
	}
	p.deleted = true
	w.queuePodEvent(p.id)
}

func (w *world) wipe(p *bound) {
	for at := p.start; at < p.end; at++ {
		w.disk[at] = 0
	}
	p.wiped = true
	w.publish()
}

// settle delivers all events, and finishes what nodes and pods have begun.
func (w *world) settle() {
	for len(w.pending) > 0 {
		w.deliverOne()
	}
}

// free is what no volume on the disk has, and no pod has reserved.
func (w *world) free() extent.Set {
	taken := make([]bool, w.size)
	for at, owner := range w.disk {
		taken[at] = owner != 0
	}
	for _, p := range w.pods {
		if p.deleted {
			continue
		}
		for at := p.start; at < p.end; at++ {
			taken[at] = true
		}
	}
	for _, v := range w.volumes {
		for at := v.start; at < v.end && !v.gone; at++ {
			taken[at] = true
		}
		// One that is wiped after a move may have to be made again, where it was put first.
		for at := 0; w.wiping[v.id] && !v.gone && at < int(v.record().Extent.Len()>>20); at++ {
			taken[v.recorded+at] = true
		}
		for _, r := range v.pieces {
			for at := r.Extent.Start >> 20; at < r.Extent.End>>20 && !v.gone; at++ {
				taken[at-1] = true
			}
		}
		if v.move != nil && !v.gone {
			for from, to := w.target(v); from < to; from++ {
				taken[from] = true
			}
		}
	}
	var free []extent.Extent
	for at, is := range taken {
		if !is {
			free = append(free, mib(at, at+1))
		}
	}
	return extent.NewSet(free...)
}

// TestModel changes a cluster at random and delivers the events in random order. It asserts that the ledger never gives
// away what is taken, and that it knows exactly what is free when all events are delivered.
func TestModel(t *testing.T) {
	seeds := uint64(3000)
	if testing.Short() {
		seeds = 300
	}
	for seed := range seeds {
		playModel(t, seed, newWorld(seed), 60)
	}
}

// TestModelOfPieces asserts the same where most changes are of volumes of several pieces.
func TestModelOfPieces(t *testing.T) {
	seeds := uint64(600)
	if testing.Short() {
		seeds = 100
	}
	many, moved := 0, 0
	for seed := range seeds {
		w := newWorld(seed)
		w.size, w.pieces = 64, true
		w.disk = make([]int, w.size)
		w.publish()
		playModel(t, seed, w, 400)
		many, moved = many+w.sawMany, moved+w.sawMoved
	}
	if many == 0 || moved == 0 {
		t.Errorf("%d volumes had several further pieces, and %d with pieces were moved: the test shows nothing", many, moved)
	}
}

// playModel makes changes, and compares the ledger with the world after all events, and after a restart.
func playModel(t *testing.T, seed uint64, w *world, steps int) {
	t.Helper()
	for range steps {
		w.step(t)
		if err := w.ledger.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	w.settle()
	if err := w.ledger.Validate(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if have, want := w.ledger.Snapshot(nodeName).Node.Disks[0].Free, w.free(); !have.Equal(want) {
		t.Fatalf("seed %d: after all events, free is %v, want %v", seed, have, want)
	}
	// A restart: a new ledger gets the present objects of the API, and nothing else.
	restarted := New()
	for id, p := range w.pods {
		if !p.deleted {
			restarted.SetPod(uid(id), nodeName, []Record{{partition(id), diskID, mib(p.start, p.end)}})
		}
	}
	for _, v := range w.volumes {
		if !v.gone {
			restarted.SetVolume(v.uid, nodeName, Version{Number: v.version, First: v.record(), Pieces: v.pieces, Move: v.move})
		}
	}
	restarted.SetCapacity(nodeName, w.capacities[len(w.capacities)-1])
	if have, want := restarted.Snapshot(nodeName).Node.Disks[0].Free, w.free(); !have.Equal(want) {
		t.Fatalf("seed %d: after a restart, free is %v, want %v", seed, have, want)
	}
}

// TestModelOfNominations asserts the same for pods that are placed beside nominated ones. It also asserts that the
// nominated pods keep their places.
func TestModelOfNominations(t *testing.T) {
	for seed := range uint64(1000) {
		w := newWorld(seed)
		w.nominations = true
		for range 60 {
			w.step(t)
		}
		w.settle()
		if err := w.ledger.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if have, want := w.ledger.Snapshot(nodeName).Node.Disks[0].Free, w.free(); !have.Equal(want) {
			t.Fatalf("seed %d: after all events, free is %v, want %v", seed, have, want)
		}
	}
}
