package diskcapacity

import (
	"cmp"
	"context"
	"math"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/placement"
)

// PreScore skips pods without disk volumes.
func (p *Plugin) PreScore(_ context.Context, cycle fwk.CycleState, _ *corev1.Pod, _ []fwk.NodeInfo) *fwk.Status {
	if _, err := readState(cycle); err != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// Score is the merit of the node. NormalizeScore maps it to the scale. A node that has lost its room since Filter gets
// the least: there Reserve would fail.
func (p *Plugin) Score(_ context.Context, cycle fwk.CycleState, pod *corev1.Pod, info fwk.NodeInfo) (int64, *fwk.Status) {
	s, err := readState(cycle)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	if s, err = p.withNominated(s, pod, info.Node().Name); err != nil {
		return 0, fwk.AsStatus(err)
	}
	merit, err := s.fit(info.Node(), p.ledger.Snapshot(info.Node().Name))
	if err != nil {
		return math.MinInt64, nil
	}
	return merit, nil
}

// ScoreExtensions implements fwk.ScorePlugin.
func (p *Plugin) ScoreExtensions() fwk.ScoreExtensions { return p }

// NormalizeScore maps merits to scores from 0 to 100. The one best node, which is the same every time, gets at least
// one more than any other. kube-scheduler does not promise which of the nodes with the same total it takes. Only one
// node gets more, so that other plugins' scores still count among nodes that the volumes fit equally well.
func (p *Plugin) NormalizeScore(_ context.Context, _ fwk.CycleState, _ *corev1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	best := bestOf(scores)
	var highest int64
	for i := range scores {
		if i != best {
			scores[i].Score = min(placement.Score(scores[i].Score), placement.MaxScore-1)
			highest = max(highest, scores[i].Score)
		}
	}
	if best >= 0 {
		scores[best].Score = max(placement.Score(scores[best].Score), highest+1)
	}
	return nil
}

// bestOf returns the index of the node that the policy chooses, by the merits; -1 if none has room.
func bestOf(merits fwk.NodeScoreList) int {
	best, highest := -1, int64(math.MinInt64)
	for i := range merits {
		merit := merits[i].Score
		if merit > highest || merit == highest && best >= 0 && ranksBefore(merits[i].Name, merits[best].Name) {
			best, highest = i, merit
		}
	}
	return best
}

// ranksBefore orders equal nodes, as the ledger's index does.
func ranksBefore(a, b string) bool {
	return cmp.Or(cmp.Compare(placement.NodeRank(a), placement.NodeRank(b)), cmp.Compare(a, b)) < 0
}
