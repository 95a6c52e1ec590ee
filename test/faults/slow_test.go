package faults

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/space/snapshots"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// shortLife is a short life: the work that a pod causes on a disk.
func (n *node) shortLife(ctx context.Context) error {
	partition := uuid.NewString()
	v, err := n.engine.Create(ctx, disk.CreateOptions{Partition: partition, Name: "round", Extent: extent.New(22*units.MiB, fsVolumeSize)})
	if err != nil {
		return err
	}
	if err := n.engine.Format(ctx, partition, func(ctx context.Context) error { return mkfs(ctx, v) }); err != nil {
		return err
	}
	if err := n.engine.MarkFormatted(ctx, partition); err != nil {
		return err
	}
	return n.wipe(ctx, partition)
}

// shortLives runs short lives, at least that many and for at least that long, and returns the duration of each.
func (n *node) shortLives(ctx context.Context, atLeast int, limit time.Duration) []time.Duration {
	var took []time.Duration
	for begin := time.Now(); len(took) < atLeast || time.Since(begin) < limit; {
		start := time.Now()
		if err := n.shortLife(ctx); err != nil {
			n.t.Errorf("beside a bad disk: %v", err)
			return took
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took
}

// readSnapshots reads the snapshot all the time, and returns the longest duration.
func (n *node) readSnapshots(stop <-chan struct{}) time.Duration {
	longest := time.Duration(0)
	for {
		begin := time.Now()
		s := n.engine.Snapshot()
		longest = max(longest, time.Since(begin))
		if err := snapshots.Validate(s); err != nil {
			n.t.Errorf("while the disk is bad: %v", err)
		}
		select {
		case <-stop:
			return longest
		case <-time.After(time.Millisecond):
		}
	}
}

// compareBeside runs lives on a good disk, alone and while work runs on a bad one, and compares their durations.
func compareBeside(t *testing.T, good, bad *node, limit time.Duration, spoil func(), work func()) {
	t.Helper()
	const least = 10
	good.shortLives(t.Context(), 3, 0) // the first ones load programs
	alone := good.shortLives(t.Context(), least, time.Second)
	spoil()
	stop := make(chan struct{})
	var longest time.Duration
	var watching sync.WaitGroup
	watching.Go(func() { longest = bad.readSnapshots(stop) })
	go work()
	together := good.shortLives(t.Context(), least, limit)
	close(stop)
	watching.Wait()
	if t.Failed() {
		return
	}
	before, after := alone[len(alone)/2], together[len(together)/2]
	t.Logf("the good disk: %d lives alone, median %s; %d beside the bad one, median %s, ratio %.2f, longest %s; longest look at the bad one's snapshot %s",
		len(alone), before, len(together), after, float64(after)/float64(before), together[len(together)-1], longest)
	// Other tests run on the same machine. A life that waited for the bad disk would take seconds.
	if after > 4*before+500*time.Millisecond {
		t.Errorf("beside a bad disk a good one takes %s for a life, alone %s", after, before)
	}
	if longest > time.Second {
		t.Errorf("a snapshot took %s", longest)
	}
}

// TestHang asserts that a disk that does not answer affects its own volumes only. Waiting requests are done when it
// answers again.
func TestHang(t *testing.T) {
	hang := 3 * time.Second
	if torture() {
		hang = time.Minute
	}
	good, bad := newNode(t, 512), newNode(t, 512)
	good.must(good.open(t.Context()))
	var changes atomic.Int32
	bad.commandTimeout, bad.changed = hang/2, func() { changes.Add(1) }
	bad.must(bad.open(t.Context()))
	if _, err := bad.engine.Create(t.Context(), disk.CreateOptions{Partition: fsVolume, Extent: fsVolumeAt}); err != nil {
		t.Fatal(err)
	}
	bad.must(bad.engine.Check(t.Context()))
	calls := []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"create", func(ctx context.Context) error {
			_, err := bad.engine.Create(ctx, disk.CreateOptions{Partition: uuid.NewString(), Extent: extent.New(36*units.MiB, units.MiB)})
			return err
		}},
		{"mark", func(ctx context.Context) error { return bad.engine.MarkFormatted(ctx, fsVolume) }},
		{"grow", func(ctx context.Context) error {
			_, err := bad.engine.Grow(ctx, fsVolume, fsVolumeGrown)
			return err
		}},
		{"raw", func(ctx context.Context) error {
			_, err := bad.engine.Create(ctx, disk.CreateOptions{Partition: rawVolume, Extent: rawVolumeAt, Raw: true})
			return err
		}},
		{"check", func(ctx context.Context) error { return bad.engine.Check(ctx) }},
	}
	results := make(chan error, len(calls))
	compareBeside(t, good, bad, hang, func() {
		changes.Store(0)
		bad.setFault(Fault{Op: Any, Do: Hang})
	}, func() {
		for _, c := range calls {
			go func() {
				err := c.call(context.WithoutCancel(t.Context()))
				if err != nil {
					err = fmt.Errorf("%s: %w", c.name, err)
				}
				results <- err
			}()
		}
	})
	// Long before the disk answers it is out of service, and further calls do not wait.
	if err := bad.engine.Snapshot().Err; !errors.Is(err, disk.ErrOutOfService) || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("the disk hangs, and its snapshot says: %v", err)
	}
	begin := time.Now()
	if err := bad.engine.MarkFormatted(t.Context(), neighbor); !errors.Is(err, disk.ErrOutOfService) || time.Since(begin) > time.Second {
		t.Errorf("a call to a disk that hangs, after %s: %v", time.Since(begin), err)
	}
	if changes.Load() == 0 {
		t.Error("no change was reported when the disk hung")
	}
	counts := bad.heal()
	if counts.Hits == 0 {
		t.Error("nothing hung")
	}
	done := 0
	for range calls {
		if err := testenv.Receive(t, "a call to the disk that answers again", results); err == nil {
			done++
		} else if !errors.Is(err, disk.ErrOutOfService) {
			t.Error(err)
		}
	}
	t.Logf("%d requests hung; of %d calls %d were done when the disk answered again", counts.Hits, len(calls), done)
	if err := bad.engine.Snapshot().Err; !errors.Is(err, disk.ErrOutOfService) {
		t.Errorf("the disk answers again and serves without having been looked at: %v", err)
	}
	bad.close()
	bad.commandTimeout = 0
	bad.must(bad.open(t.Context()))
	bad.must(bad.shortLife(t.Context()))
	if bad.digest(neighborAt).Hash != bad.neighbor.Hash {
		t.Error("the neighbor's bytes have changed")
	}
}

// TestHangWhileWiping asserts that all callers get the error when the disk stops answering during a wipe. The wiping
// goroutine is not the one that owns the table.
func TestHangWhileWiping(t *testing.T) {
	for _, c := range []struct {
		name string
		call func(n *node, ctx context.Context) error
	}{
		{"wipe", func(n *node, ctx context.Context) error { return n.wipe(ctx, fsVolume) }},
		{"grow", func(n *node, ctx context.Context) error {
			_, err := n.engine.Grow(ctx, fsVolume, fsVolumeGrown)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, 512)
			n.fillVolume(t)
			n.commandTimeout = time.Second
			n.must(n.open(t.Context()))
			n.setFault(Fault{Op: Zero, Do: Hang})
			ended := make(chan error, 1)
			go func() { ended <- c.call(n, context.WithoutCancel(t.Context())) }()
			testenv.Eventually(t, "zeroing", func() error {
				if n.counts().Hits == 0 {
					return errors.New("nothing is zeroed")
				}
				return nil
			})
			if err := n.engine.Snapshot().Err; err != nil {
				t.Errorf("only zeroing takes long, and the disk is out of service: %v", err)
			}
			n.setFault(Fault{Op: Any, Do: Hang})
			testenv.Eventually(t, "out of service", func() error {
				if err := n.engine.Snapshot().Err; !errors.Is(err, disk.ErrOutOfService) {
					return fmt.Errorf("the disk hangs, and its snapshot says: %w", err)
				}
				return nil
			})
			n.heal()
			if err := testenv.Receive(t, "the call", ended); !errors.Is(err, disk.ErrOutOfService) {
				t.Errorf("after a hang: %v", err)
			}
			n.close()
			n.commandTimeout = 0
			n.must(n.open(t.Context()))
			n.must(n.wipe(t.Context(), fsVolume))
			n.checkEnd(t)
		})
	}
}

// TestSlow asserts that a disk that does 20 requests a second is slow, and not broken.
func TestSlow(t *testing.T) {
	good, bad := newNode(t, 512), newNode(t, 512)
	good.must(good.open(t.Context()))
	bad.must(bad.open(t.Context()))
	const perSecond = 20
	ended := make(chan error, 1)
	begin := time.Now()
	compareBeside(t, good, bad, 3*time.Second, func() {
		bad.setFault(Fault{})
		bad.call("Pace", perSecond, new(bool))
	}, func() {
		ctx := context.WithoutCancel(t.Context())
		v, err := bad.engine.Create(ctx, disk.CreateOptions{Partition: fsVolume, Extent: fsVolumeAt})
		if err == nil {
			err = bad.engine.Format(ctx, fsVolume, func(ctx context.Context) error { return mkfs(ctx, v) })
		}
		if err == nil {
			err = bad.engine.MarkFormatted(ctx, fsVolume)
		}
		if err == nil && torture() {
			err = bad.wipe(ctx, fsVolume)
		}
		ended <- err
	})
	err := testenv.Receive(t, "the calls to the slow disk", ended)
	took := time.Since(begin)
	counts := bad.heal()
	requests := counts.of(Any)
	t.Logf("a volume on the slow disk: %d requests in %s", requests, took)
	if err != nil {
		t.Errorf("on a slow disk: %v", err)
	}
	if v := bad.volume(fsVolume); !torture() && v.Phase != disk.Formatted {
		t.Errorf("the volume on the slow disk is %+v", v)
	}
	if requests < 20 || took < time.Duration(requests-1)*time.Second/perSecond {
		t.Errorf("the disk was not slow: %d requests in %s", requests, took)
	}
	bad.must(bad.wipe(t.Context(), fsVolume))
}
