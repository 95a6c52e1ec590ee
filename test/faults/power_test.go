package faults

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/space/snapshots"
	"github.com/berthdev/berth/test/testenv"
)

// afterPowerCut follows a power cut: nothing is mounted or attached any more. c says how much of the disk's cache
// survives.
func (n *node) afterPowerCut(c Cut) (pending int) {
	n.t.Helper()
	n.unmount()
	n.unmountNeighbor()
	n.close()
	n.detach()
	n.heal()
	n.call("PowerOn", c, &pending)
	n.healed = true
	n.call("Reattach", 0, &n.path)
	return pending
}

// cutPower runs the lives up to the power cut and reboots. It returns which step was in progress.
func (n *node) cutPower(t *testing.T, f Fault, c Cut) (steps []step, at, pending int, hit bool) {
	t.Helper()
	n.call("Restore", 0, new(bool))
	n.resized, n.healed = false, false
	steps = lifeSteps()
	n.setFault(f)
	failed, err := n.runSteps(t.Context(), steps)
	if errors.Is(err, errBrokenPromise) || errors.Is(err, errLost) {
		t.Errorf("%s: %v", failed, err)
	}
	at = slices.IndexFunc(steps, func(s step) bool { return s.name == failed })
	hit = n.counts().Hits > 0
	return steps, at, n.afterPowerCut(c), hit
}

// powerCuts are places of power cuts, spread over the lives.
func (n *node) powerCuts(t *testing.T) []Fault {
	t.Helper()
	whole := n.runHealthy(t, Fault{})
	var faults []Fault
	for _, op := range []Op{Change, Sync} {
		for at := range whole.of(op) {
			faults = append(faults, Fault{Op: op, At: at, Do: PowerOff})
		}
	}
	random := rand.New(rand.NewPCG(7, 7))
	random.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	return faults
}

// enough reports whether that many tries suffice. They began at that time.
func enough(tries, all int, begin time.Time, limit time.Duration) bool {
	return tries >= all || !torture() && tries >= 12 && time.Since(begin) > limit
}

// TestPowerCut cuts the power at each write and flush in turn. The disk is honest: what it flushed is there, and of the
// rest some sectors are. It asserts that nothing acknowledged is lost, and that the lives go on to their end.
func TestPowerCut(t *testing.T) {
	n := newNode(t, 512)
	faults := n.powerCuts(t)
	kept := []int{0, 30, 70, 100}
	all := len(faults) * len(kept)
	begin, tries, hits, pendings, interrupted := time.Now(), 0, 0, 0, map[string]int{}
	for ; !enough(tries, all, begin, 5*time.Second); tries++ {
		f := faults[tries%len(faults)]
		c := Cut{Kept: kept[(tries+tries/len(faults))%len(kept)], Seed: uint64(tries), Whole: fileSystemSpan}
		steps, at, pending, hit := n.cutPower(t, f, c)
		if hit {
			hits++
		}
		pendings += pending
		possible := []string{steps[len(steps)-1].state}
		if at >= 0 {
			possible = []string{steps[max(at-1, 0)].state, steps[at].state, steps[at].between}
			interrupted[steps[at].name]++
		}
		if err := n.open(t.Context()); err != nil {
			t.Fatalf("%+v, %+v: after a power cut the disk does not open: %v", f, c, err)
		}
		n.mountNeighbor()
		n.checkFreed(t, at)
		if now := n.state(); !slices.Contains(possible, now) {
			t.Errorf("the volumes are %q, which is none of %q", now, possible)
		}
		if at >= 0 {
			if step, err := n.runSteps(t.Context(), steps[at:]); err != nil {
				t.Errorf("after the reboot: %s: %v", step, err)
			}
		}
		n.checkEnd(t)
		n.close()
		if tries%verifyEvery == 0 {
			n.verify(t)
		}
		if t.Failed() {
			t.Fatalf("after %d power cuts, with %+v, %+v", tries+1, f, c)
		}
	}
	t.Logf("%d of %d power cuts tried, %d in the middle of the lives, with %d changes in the cache in all; steps that were interrupted: %v; %d tables shown to other tools",
		tries, all, hits, pendings, interrupted, (tries+verifyEvery-1)/verifyEvery)
	if hits < tries/2 || pendings == 0 || len(interrupted) < 4 {
		t.Error("the power cuts hit too little")
	}
}

// TestLyingFsync has a disk that acknowledges a flush without doing it, from some place on. After a power cut it may
// have lost any of these writes, and Berth cannot notice that. The test asserts that the disk is refused with a reason,
// or that its table is one that it had. It is never blank.
func TestLyingFsync(t *testing.T) {
	n := newNode(t, 512)
	faults := n.powerCuts(t)
	known := map[string]bool{}
	for _, s := range lifeSteps() {
		known[s.state], known[s.between] = true, true
	}
	begin, tries, lost, outcomes := time.Now(), 0, 0, map[string]int{}
	for ; !enough(tries, 4*len(faults), begin, 4*time.Second); tries++ {
		f := faults[tries%len(faults)]
		c := Cut{Kept: []int{0, 30, 70}[tries%3], Ordered: tries%2 == 0, Seed: uint64(tries), Whole: fileSystemSpan}
		n.call("Restore", 0, new(bool))
		n.call("Lie", 0, new(bool))
		steps, at, pending, _ := n.cutPower(t, f, c)
		lost += pending
		outcome, serves := n.afterLies(t, known)
		if at >= 0 && outcome == steps[max(at-1, 0)].state {
			outcome = "as acknowledged"
		} else if serves {
			outcome = "older"
		}
		outcomes[outcome]++
		if c.Ordered && !serves {
			t.Errorf("the cache was lost in order, and the disk is not served: %s", outcome)
		}
		if n.digest(neighborAt).Hash != n.neighbor.Hash {
			t.Error("the neighbor's bytes have changed")
		}
		if t.Failed() {
			t.Fatalf("after %d power cuts, with %+v, %+v", tries+1, f, c)
		}
		n.close()
		testenv.RemovePartitions(t, n.path)
	}
	t.Logf("%d power cuts of a disk that lies about fsync, with %d changes in the cache in all: %v", tries, lost, outcomes)
	if len(outcomes) < 2 || lost == 0 {
		t.Errorf("the lies changed nothing: %v", slices.Collect(maps.Keys(outcomes)))
	}
}

// afterLies opens the disk, describes its state, and returns whether it serves.
func (n *node) afterLies(t *testing.T, known map[string]bool) (outcome string, serves bool) {
	t.Helper()
	c, err := disk.Inspect(t.Context(), n.path)
	switch {
	case err != nil:
		t.Errorf("looking at the disk: %v", err)
		return "", false
	case c.State == disk.Blank:
		t.Error("a disk with a volume is called blank")
		return "", false
	case strings.Contains(c.Reason, "both copies"):
		return "refused, both copies of the table are damaged", false
	case c.State != disk.Ours:
		return "refused: " + c.Reason, false
	}
	if err := n.open(t.Context()); err != nil {
		return "does not open: " + err.Error(), false
	}
	now := n.state()
	if !known[now] {
		t.Errorf("the volumes are %q, which they never were", now)
	}
	if v := n.volume(neighbor); v.Phase != disk.Formatted || v.Extent != neighborAt {
		t.Errorf("the neighbor is %+v", v)
	}
	// The existing volumes can be wiped, and others can be made.
	for _, partition := range []string{fsVolume, rawVolume} {
		if err := n.wipe(t.Context(), partition); err != nil {
			t.Error(err)
		}
	}
	if err := n.shortLife(t.Context()); err != nil {
		t.Errorf("the disk does not serve: %v", err)
	}
	if s := n.engine.Snapshot(); snapshots.Validate(s) != nil || s.Err != nil || !s.Free.Equal(n.free) {
		t.Errorf("at the end the disk is %+v, %v", s, snapshots.Validate(s))
	}
	return now, true
}
