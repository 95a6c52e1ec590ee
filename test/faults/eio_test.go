package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/test/space/snapshots"
)

// faultResult is the result of one fault.
type faultResult struct {
	step         string // that failed; empty if none did
	outOfService bool   // it took the disk out of service
	hits         int
}

// TestFaultsInTurn runs the lives of two volumes on a disk that fails one request, or all from one on, at each place in
// turn. It asserts that after the disk is healed everything acknowledged is there, and that the lives go on to their
// end.
func TestFaultsInTurn(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		t.Run(strconv.FormatInt(sector, 10), func(t *testing.T) { faultsInTurn(t, sector) })
	}
}

func faultsInTurn(t *testing.T, sector int64) {
	n := newNode(t, sector)
	whole, tables := n.runHealthy(t, Fault{}), n.runHealthy(t, Fault{Except: fileSystemSpan})
	t.Logf("two lives: %d reads, %d writes, %d zeroings, %d flushes", whole.of(Read), whole.of(Write), whole.of(Zero), whole.of(Sync))

	var kinds [][]Fault
	add := func(f Fault, requests int) {
		var kind []Fault
		for f.At = range requests {
			kind = append(kind, f)
		}
		kinds = append(kinds, kind)
	}
	for _, op := range []Op{Sync, Zero, Write, Read} {
		add(Fault{Op: op, Do: Fail, Count: 1}, whole.of(op))
		add(Fault{Op: op, Do: Fail}, whole.of(op))
	}
	add(Fault{Op: Any, Do: Fail}, whole.of(Any))
	add(Fault{Op: Zero, Do: Drop, Count: 1}, whole.of(Zero))
	add(Fault{Op: Zero, Do: Drop}, whole.of(Zero))
	// The reaction of a file system to dropped writes is not under test.
	add(Fault{Op: Write, Do: Drop, Count: 1, Except: fileSystemSpan}, tables.of(Write))
	add(Fault{Op: Write, Do: Drop, Except: fileSystemSpan}, tables.of(Write))
	// A full thin disk has no room for new blocks. Existing blocks can be written.
	add(Fault{Op: Write, Do: Full}, whole.of(Write)/2)
	if sector != 512 {
		n.tryAll(t, kinds, 3*time.Second)
		return
	}
	n.tryAll(t, kinds, 6*time.Second)
	if torture() {
		return
	}
	// A single request that fails: each kind is tried in every run, also on a slow machine.
	kinds = nil
	for _, op := range []Op{Sync, Zero, Write, Read} {
		add(Fault{Op: op, Do: Fail, Count: 1}, whole.of(op))
	}
	n.tryAll(t, kinds, time.Hour)
}

// runHealthy runs the lives on a disk without faults, and counts the requests.
func (n *node) runHealthy(t *testing.T, f Fault) Counts {
	t.Helper()
	n.call("Restore", 0, new(bool))
	n.setFault(f)
	step, err := n.runSteps(t.Context(), lifeSteps())
	counts := n.heal()
	if err != nil {
		t.Fatalf("%s, on a disk that is well: %v", step, err)
	}
	n.checkEnd(t)
	n.close()
	return counts
}

// tryFaults tries the faults: all of them under torture, else as many as there is time for. Then it tries some of each
// kind, at places that are spread evenly. It stops after a failure.
func tryFaults(t *testing.T, kinds [][]Fault, limit time.Duration, try func(Fault)) (tried, all int) {
	t.Helper()
	random := rand.New(rand.NewPCG(4, 4))
	for _, kind := range kinds {
		all += len(kind)
		random.Shuffle(len(kind), func(i, j int) { kind[i], kind[j] = kind[j], kind[i] })
	}
	begin := time.Now()
	for round := 0; tried < all; round++ {
		const atLeast = 1
		if !torture() && round >= atLeast && time.Since(begin) > limit {
			break
		}
		for _, kind := range kinds {
			if round >= len(kind) {
				continue
			}
			try(kind[round])
			if tried++; tried%500 == 0 {
				t.Logf("%d of %d faults tried in %s", tried, all, time.Since(begin).Round(time.Second))
			}
			if t.Failed() {
				t.Fatalf("after %d faults, with %+v", tried, kind[round])
			}
		}
	}
	return tried, all
}

// tryAll tries the faults on the lives.
func (n *node) tryAll(t *testing.T, kinds [][]Fault, limit time.Duration) {
	hit, failedIn, outside, done := map[string]int{}, map[string]int{}, 0, 0
	tried, all := tryFaults(t, kinds, limit, func(f Fault) {
		o := n.tryFault(t, f, done%2 == 0)
		if done++; done%verifyEvery == 0 {
			n.verify(t)
		}
		if o.hits > 0 {
			hit[f.String()]++
		}
		if o.outOfService {
			outside++
		}
		if o.step != "" {
			failedIn[o.step]++
		}
	})
	t.Logf("%d of %d faults tried; they hit: %v; steps that failed: %v; out of service %d times; %d tables shown to other tools",
		tried, all, hit, failedIn, outside, done/verifyEvery)
	few := len(kinds) <= 2 // each may be absorbed
	if len(hit) == 0 || len(hit) < len(kinds)-2 || !few && (len(failedIn) == 0 || outside == 0) {
		t.Errorf("the faults hit too little")
	}
}

// runSteps takes the steps, up to one that fails.
func (n *node) runSteps(ctx context.Context, steps []step) (failed string, err error) {
	for _, s := range steps {
		if err := s.do(ctx, n); err != nil {
			return s.name, err
		}
		if err := n.engine.Snapshot().Err; err != nil {
			return s.name, err // found out after the step
		}
		if got := n.state(); got != s.state {
			return s.name, fmt.Errorf("%w: it succeeded, but the volumes are %q, not %q", errBrokenPromise, got, s.state)
		}
	}
	return "", nil
}

// errBrokenPromise says that the engine broke a promise.
var errBrokenPromise = errors.New("broken promise")

// tryFault runs the lives on a disk with the fault, heals it, and runs them to their end.
func (n *node) tryFault(t *testing.T, f Fault, restart bool) (o faultResult) {
	t.Helper()
	ctx := t.Context()
	n.call("Restore", 0, new(bool))
	steps := lifeSteps()
	n.resized, n.healed = false, false
	n.setFault(f)
	failed, err := n.runSteps(ctx, steps)
	if errors.Is(err, errBrokenPromise) || errors.Is(err, errLost) {
		t.Errorf("%s: %v", failed, err)
		return o
	}
	o.step = failed
	o.outOfService = n.engine != nil && n.engine.Snapshot().Err != nil
	if o.outOfService {
		n.checkOutOfService(ctx, t)
	}
	o.hits, n.healed = n.heal().Hits, true
	// The pod is gone, or starts again.
	n.unmount()
	if restart || o.outOfService || err == nil {
		n.close()
	}
	at := slices.IndexFunc(steps, func(s step) bool { return s.name == failed })
	possible := []string{steps[len(steps)-1].state}
	if err != nil {
		possible = []string{steps[max(at-1, 0)].state, steps[at].state, steps[at].between}
	}
	lost := f.Do == Drop && at < slices.IndexFunc(steps, func(s step) bool { return s.name == "write" })
	if lost {
		// Create does not wait for the read-back of a volume that no pod uses yet.
		possible = append(possible, steps[0].state)
	}
	if n.engine == nil {
		openErr := n.open(ctx)
		if openErr != nil {
			t.Errorf("%s: %v; then the disk, well again, does not open: %v", failed, err, openErr)
			return o
		}
	}
	n.checkFreed(t, at)
	if now := n.state(); !slices.Contains(possible, now) {
		t.Errorf("%s: %v; then the volumes are %q, which is none of %q", failed, err, now, possible)
	}
	if lost && n.state() == steps[0].state {
		at = 0
	}
	if err != nil {
		if again, againErr := n.runSteps(ctx, steps[at:]); againErr != nil {
			t.Errorf("%s: %v; then, on the disk that is well again, %s: %v", failed, err, again, againErr)
		}
	}
	n.checkEnd(t)
	n.unmount()
	n.close()
	return o
}

// checkFreed asserts that the bytes of volumes that were wiped up to a step of the lives are zeros on the medium. It is
// called before anything else is done.
func (n *node) checkFreed(t *testing.T, at int) {
	t.Helper()
	for i, s := range lifeSteps()[:at+1] {
		partition, e := fsVolume, grownAt
		switch {
		case s.name == "wipe raw":
			partition, e = rawVolume, rawVolumeAt
		case s.name != "wipe":
			continue
		}
		if n.volume(partition).Phase == "" && !n.digest(e).Zero {
			t.Errorf("step %d: the extent of %s is free, and not zero on the medium", i, partition)
		}
	}
}

// checkOutOfService asserts that a disk out of service answers at once, and writes nothing.
func (n *node) checkOutOfService(ctx context.Context, t *testing.T) {
	t.Helper()
	before := n.counts().of(Change)
	for _, err := range []error{
		n.engine.MarkFormatted(ctx, neighbor), n.wipe(ctx, rawVolume), n.engine.Check(ctx),
	} {
		if !errors.Is(err, disk.ErrOutOfService) {
			t.Errorf("a disk out of service answers: %v", err)
		}
	}
	if after := n.counts().of(Change); after != before && !n.isMounted() {
		t.Errorf("a disk out of service was written to, %d times", after-before)
	}
}

func (n *node) isMounted() bool {
	targets, err := mounts.OfDevice(n.volume(fsVolume).Device)
	return err != nil || len(targets) > 0
}

// checkEnd asserts that at the end of the lives the disk is as before them.
func (n *node) checkEnd(t *testing.T) {
	t.Helper()
	s := n.engine.Snapshot()
	if s.Err != nil {
		t.Errorf("at the end the disk is out of service: %v", s.Err)
	}
	if err := snapshots.Validate(s); err != nil {
		t.Error(err)
	}
	if !s.Free.Equal(n.free) {
		t.Errorf("at the end %v is free, not %v", s.Free, n.free)
	}
	if n.digest(neighborAt).Hash != n.neighbor.Hash {
		t.Error("the neighbor's bytes have changed")
	}
	if v := n.volume(neighbor); v.Phase != disk.Formatted || v.Extent != neighborAt {
		t.Errorf("the neighbor is %+v", v)
	}
	targets, err := mounts.OfDevice(n.volume(neighbor).Device)
	if err != nil || len(targets) != 1 {
		t.Errorf("the neighbor is mounted on %v: %v", targets, err)
	} else if err := readBack(filepath.Join(targets[0].Mountpoint, "file"), neighbor); err != nil {
		t.Errorf("the neighbor: %v", err)
	}
	if !n.digest(grownAt).Zero || !n.digest(rawVolumeAt).Zero {
		t.Error("what was wiped is not zero on the medium")
	}
}

func (a Action) String() string {
	return strings.Fields("none EIO ENOSPC drop hang power")[a]
}

func (f Fault) String() string {
	times := "from then on"
	if f.Count > 0 {
		times = fmt.Sprintf("%d times", f.Count)
	}
	return fmt.Sprintf("%v of a %v %s", f.Do, f.Op, times)
}
