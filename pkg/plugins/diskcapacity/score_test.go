package diskcapacity

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

func TestNormalizeScore(t *testing.T) {
	// Equal nodes come in this order.
	if names := slices.SortedFunc(slices.Values([]string{"a", "b", "c"}), func(a, b string) int {
		return cmp.Compare(placement.NodeRank(a), placement.NodeRank(b))
	}); !slices.Equal(names, []string{"b", "c", "a"}) {
		t.Fatalf("the nodes' order is %v", names)
	}
	lost := int64(math.MinInt64)
	for _, test := range []struct {
		name   string
		merits []int64 // of nodes a, b and c
		want   []int64
	}{
		{"exact fits: the first in the order stands out by one", []int64{0, 0, 0}, []int64{99, 100, 99}},
		{"the tightest", []int64{-300 * units.MiB, -200 * units.MiB, -100 * units.MiB}, []int64{67, 69, 73}},
		{"equally tight", []int64{-300 * units.MiB, -200 * units.MiB, -200 * units.MiB}, []int64{67, 70, 69}},
		{"of scores that are the same, the tighter", []int64{-200 * units.MiB, -201 * units.MiB, -202 * units.MiB}, []int64{70, 69, 69}},
		{"the only exact fit", []int64{-units.MiB, -5 * units.MiB, 0}, []int64{99, 90, 100}},
		{"a node that lost its room is last", []int64{lost, lost, -300 * units.MiB}, []int64{0, 0, 67}},
		{"all lost their room", []int64{lost, lost, lost}, []int64{0, 0, 0}},
		{"larger than the scale: still one", []int64{-1 << 50, -1 << 50, -1 << 51}, []int64{0, 1, 0}},
		{"spread: the most free", []int64{100 * units.MiB, 200 * units.MiB, 300 * units.MiB}, []int64{27, 31, 33}},
		{"spread: equals", []int64{100 * units.MiB, 200 * units.MiB, 200 * units.MiB}, []int64{27, 32, 31}},
		{"spread: beyond the scale", []int64{1 << 50, 1 << 50, 1 << 51}, []int64{99, 99, 100}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var scores fwk.NodeScoreList
			for i, merit := range test.merits {
				scores = append(scores, fwk.NodeScore{Name: string(rune('a' + i)), Score: merit})
			}
			if status := (&Plugin{}).NormalizeScore(t.Context(), nil, nil, scores); !status.IsSuccess() {
				t.Fatal(status)
			}
			for i, want := range test.want {
				if scores[i].Score != want {
					t.Errorf("node %s has %d, want %d", scores[i].Name, scores[i].Score, want)
				}
			}
		})
	}
}

// TestTheOneBestNode asserts that of 5000 nodes, many of them equal, the scheduler takes the one that the policy
// chooses of all, every time.
func TestTheOneBestNode(t *testing.T) {
	names := make([]string, 5000)
	for i := range names {
		names[i] = fmt.Sprintf("n%04d", i)
	}
	b := newBench(t, nil, names...)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range names {
		b.publish(t, name, 1+rng.Int64N(600))
	}
	for i := range 100 {
		policy := []diskv1alpha1.PlacementPolicy{diskv1alpha1.PlaceBestFit, diskv1alpha1.PlaceSpread}[i%2]
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{PlacementPolicy: policy}}
		if err := b.plugin.feed.classes.Update(class); err != nil {
			t.Fatal(err)
		}
		pod := podOf(fmt.Sprint("pod-", i), 1+rng.Int64N(300))
		state, tried := b.triedOn(t, pod)
		if len(tried) != narrowTo {
			t.Fatalf("tried on %d nodes", len(tried))
		}
		var infos []fwk.NodeInfo
		for _, name := range tried {
			infos = append(infos, b.node(name))
			if status := b.framework.RunFilterPlugins(b.ctx, state, pod, b.node(name)); !status.IsSuccess() {
				t.Fatalf("%s: %v", name, status)
			}
		}
		if status := b.framework.RunPreScorePlugins(b.ctx, state, pod, infos); !status.IsSuccess() {
			t.Fatal(status)
		}
		scores, status := b.framework.RunScorePlugins(b.ctx, state, pod, infos)
		if !status.IsSuccess() {
			t.Fatal(status)
		}
		slices.SortFunc(scores, func(x, y fwk.NodePluginScores) int { return cmp.Compare(y.TotalScore, x.TotalScore) })
		if scores[0].TotalScore == scores[1].TotalScore {
			t.Fatalf("%s: %s and %s both have %d", pod.Name, scores[0].Name, scores[1].Name, scores[0].TotalScore)
		}
		if want := b.chosenOfAll(t, state, names); scores[0].Name != want {
			t.Fatalf("%s under %s goes to %s, want %s", pod.Name, policy, scores[0].Name, want)
		}
		if status := b.plugin.Reserve(b.ctx, state, pod, scores[0].Name); !status.IsSuccess() {
			t.Fatal(status)
		}
	}
}

// chosenOfAll is the node that the policy chooses, by the one free extent that each has.
func (b *bench) chosenOfAll(t *testing.T, cycle fwk.CycleState, names []string) string {
	t.Helper()
	s, err := readState(cycle)
	if err != nil {
		t.Fatal(err)
	}
	r := s.requests[0]
	chosen, least := "", int64(math.MaxInt64)
	for _, name := range names {
		length := b.plugin.ledger.Snapshot(name).Node.Disks[0].Free.Largest().Len()
		rank := length - r.Size
		switch {
		case rank < 0:
			continue
		case r.Policy == placement.Spread:
			rank = -length
		}
		if rank < least || rank == least && placement.NodeRank(name) < placement.NodeRank(chosen) {
			chosen, least = name, rank
		}
	}
	return chosen
}
