package main

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/units"
)

// pieceTarget is the share of the bound's bytes that is to be placed with at most targetPieces.
const (
	pieceTarget  = 0.999
	targetPieces = 4
)

// piecesWays are the ways to place in pieces that are compared.
var piecesWays = []piecesWay{{2, true}, {targetPieces, true}, {maxPieces, true}, {targetPieces, false}, {maxPieces, false}}

// piecesWay is how a new volume is placed in pieces.
type piecesWay struct {
	// most is how many pieces it may have.
	most int
	// onOneDisk is true if all of them are on one disk, as Berth places them. Otherwise they are on one node, which is a
	// plan.
	onOneDisk bool
}

func (w piecesWay) String() string {
	if w.onOneDisk {
		return fmt.Sprintf("BestFit, maxPieces %d (Berth)", w.most)
	}
	return fmt.Sprintf("BestFit, %d pieces on several disks (a plan)", w.most)
}

// pieceStore is a cluster under a policy where a volume that no extent holds is placed in the fewest pieces that do.
type pieceStore struct {
	*policyStore
	piecesWay
	volumes map[place]held // those in pieces, by the place of the first
	// Of the whole trace: volumes placed, and of these in pieces.
	placed, placedInPieces int
}

func newPieceStore(disks int, p *policy, way piecesWay, seed uint64) *pieceStore {
	return &pieceStore{
		policyStore: &policyStore{newCluster(disks), p, rand.New(rand.NewPCG(seed, 1))},
		piecesWay:   way, volumes: map[place]held{},
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
	placeInPieces := s.placeInPieces
	if s.onOneDisk {
		placeInPieces = s.planInPieces
	}
	v, ok := placeInPieces(size, s.most)
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

// planInPieces chooses the node and the pieces as Berth does: the best merit, and of equals the first.
func (c *cluster) planInPieces(size int32, most int) (held, bool) {
	requests := []placement.Request{{Class: class, Size: int64(size) * units.GiB, MaxPieces: most}}
	best, bestMerit := held{}, int64(math.MinInt64)
	for n := range int32(len(c.nodes)) {
		if int64(c.mostOnDisk(n)) < int64(size) {
			continue
		}
		node := placement.Node{Disks: c.nodes[n].Disks, Pieces: true}
		plan, err := placement.Plan(nil, &node, requests)
		if err != nil {
			continue
		}
		if merit := placement.Merit(&node, requests, plan); best.pieces == nil || merit > bestMerit {
			best, bestMerit = held{n, piecesOf(&plan[0])}, merit
		}
	}
	return best, best.pieces != nil
}

// mostOnDisk is how many GiB are free on the emptiest disk of the node.
func (c *cluster) mostOnDisk(node int32) int32 {
	most := int32(0)
	for d := node * disksPerNode; d < (node+1)*disksPerNode; d++ {
		most = max(most, c.freeOf[d])
	}
	return most
}

// piecesOf are the pieces of a place.
func piecesOf(a *placement.Assignment) []piece {
	on := int(a.Disk[0] - 'a')
	pieces := []piece{{on, a.Extent}}
	for _, e := range a.Further {
		pieces = append(pieces, piece{on, e})
	}
	return pieces
}

// comparePieces shows what placing in pieces adds to BestFit. The measures are those of the bound and of the
// policies, of the same trace.
func (p *plan) comparePieces(w io.Writer, t *trace, measures []*measure) error {
	stores := make([]*pieceStore, len(piecesWays))
	planned := make([]*measure, len(piecesWays))
	err := p.inParallel(len(piecesWays), func(i int) (err error) {
		stores[i] = newPieceStore(t.disks, &policies[0], piecesWays[i], p.seed)
		planned[i], err = run(t, piecesWays[i].String(), stores[i])
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "### Placing in pieces, %d nodes, %d requests\n\n", t.disks/disksPerNode, measures[0].asked)
	table(w, slices.Concat(measures, planned))
	i := slices.Index(piecesWays, piecesWay{targetPieces, true})
	fmt.Fprintf(w, "With maxPieces %d BestFit admits %s of the bytes that the bound admits (target: %.3f). It places %.2f %% of the volumes in pieces.\n\n",
		targetPieces, verdict(part(planned[i].placedBytes, measures[0].placedBytes), pieceTarget), pieceTarget, 100*part(stores[i].placedInPieces, stores[i].placed))
	return nil
}
