package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/test/units"
)

// pieceTarget is the share of the bound's bytes that is to be placed with at most targetPieces.
const (
	pieceTarget  = 0.999
	targetPieces = 4
)

// placedIn are the numbers of pieces that a new volume may have in the plans that are compared.
var placedIn = []int{2, targetPieces, maxPieces}

// pieceStore is a cluster under a policy where a volume that no extent holds is placed in the fewest pieces that do, on
// one node. That is a plan: Berth does not do it.
type pieceStore struct {
	*policyStore
	most    int
	volumes map[place]held // those in pieces, by the place of the first
	// Of the whole trace: volumes placed, and of these in pieces.
	placed, placedInPieces int
}

func newPieceStore(disks int, p *policy, most int, seed uint64) *pieceStore {
	return &pieceStore{
		policyStore: &policyStore{newCluster(disks), p, rand.New(rand.NewPCG(seed, 1))},
		most:        most, volumes: map[place]held{},
	}
}

func (s *pieceStore) place(size int32, hours float64) (place, bool, error) {
	p, ok, err := s.policyStore.place(size, hours)
	if err != nil {
		return p, false, err
	}
	if ok {
		s.placed++
		return p, true, nil
	}
	v, ok := s.placeInPieces(size, s.most)
	if !ok {
		return place{}, false, nil
	}
	first := place{v.node*disksPerNode + int32(v.pieces[0].disk), v.pieces[0].extent}
	s.volumes[first] = v
	s.placed++
	s.placedInPieces++
	return first, true, s.exchange(v.node, nil, v.pieces)
}

func (s *pieceStore) release(p place) {
	v, ok := s.volumes[p]
	if !ok {
		s.policyStore.release(p)
		return
	}
	delete(s.volumes, p)
	if err := s.exchange(v.node, v.pieces, nil); err != nil {
		panic(err)
	}
}

// placeInPieces chooses the node where the volume has the fewest pieces. Of equals it takes the one where the last
// piece leaves the least of its extent, of these the first.
func (c *cluster) placeInPieces(size int32, most int) (held, bool) {
	var best held
	var bestLeft int64
	for n := range int32(len(c.nodes)) {
		free := c.freeOn(n)
		pieces, ok := fewest(free, int64(size)*units.GiB, most)
		if !ok {
			continue
		}
		last := pieces[len(pieces)-1]
		in, _ := free[last.disk].Holding(last.extent)
		left := in.Len() - last.extent.Len()
		if best.pieces == nil || len(pieces) < len(best.pieces) || len(pieces) == len(best.pieces) && left < bestLeft {
			best, bestLeft = held{n, pieces}, left
		}
	}
	return best, best.pieces != nil
}

// comparePieces shows what placing in pieces would add to BestFit. The measures are those of the bound and of the
// policies, of the same trace.
func (p *plan) comparePieces(w io.Writer, t *trace, measures []*measure) error {
	stores := make([]*pieceStore, len(placedIn))
	planned := make([]*measure, len(placedIn))
	err := p.inParallel(len(placedIn), func(i int) (err error) {
		stores[i] = newPieceStore(t.disks, &policies[0], placedIn[i], p.seed)
		planned[i], err = run(t, fmt.Sprintf("BestFit, up to %d pieces (a plan)", placedIn[i]), stores[i])
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "### Placing in pieces, %d nodes, %d requests\n\n", t.disks/disksPerNode, measures[0].asked)
	table(w, slices.Concat(measures, planned))
	i := slices.Index(placedIn, targetPieces)
	fmt.Fprintf(w, "With up to %d pieces BestFit would admit %s of the bytes that the bound admits (target: %.3f). It would place %.2f %% of the volumes in pieces.\n\n",
		targetPieces, verdict(part(planned[i].placedBytes, measures[0].placedBytes), pieceTarget), pieceTarget, 100*part(stores[i].placedInPieces, stores[i].placed))
	return nil
}
