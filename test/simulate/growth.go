package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/berthdev/berth/test/units"
)

const (
	// growthTarget is the share of the bound that growing in pieces must reach.
	growthTarget = 0.99
	nodeSize     = disksPerNode * diskSize // GiB
)

// fills are the percentages of the bytes in use at which growth is simulated.
var fills = []int32{50, 70, 90}

// band are the nodes of which at least low and at most high percent are used.
type band struct{ low, high int32 }

func (b band) has(used int32) bool { return 100*used >= b.low*nodeSize && 100*used <= b.high*nodeSize }

// held is a volume that exists: its pieces, on a node.
type held struct {
	node   int32
	pieces []piece
}

// growths is a cluster in which volumes grow in one way, and what came of it.
type growths struct {
	store   *policyStore
	way     *way
	counted band
	volumes map[int32]held // by slot

	// Only of the requests that count. grown are those to grow, on the nodes that are counted. pooled are the same, as
	// if free bytes anywhere on the node were enough. added are the new volumes.
	grown, pooled, added result
	copied               int64 // GiB, by moving
	mostPieces           int
	// Over all samples that count: volumes, of these in pieces and on two disks, and GiB in use.
	seen, inPieces, onTwoDisks int
	used                       int64
	samples                    int
}

// growAll applies a trace of volumes that grow to the store.
func growAll(t *trace, s *policyStore, w *way, counted band) (*growths, error) {
	g := &growths{store: s, way: w, counted: counted, volumes: map[int32]held{}}
	next := 0
	for i, e := range t.events {
		counts := i >= t.settled
		for next < len(t.samples) && t.samples[next].at == i {
			if next++; counts {
				g.look()
			}
		}
		var err error
		switch {
		case e.size == 0:
			err = g.remove(e.slot)
		case e.grows:
			err = g.grow(e, counts)
		default:
			err = g.add(e, counts)
		}
		if err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *growths) add(e event, counts bool) error {
	at, ok, err := g.store.place(e.size, e.hours)
	if ok {
		g.volumes[e.slot] = held{at.disk / disksPerNode, []piece{{int(at.disk % disksPerNode), at.extent}}}
	}
	if counts {
		g.added.count(e.size, ok)
	}
	return err
}

// remove frees the volume's pieces. A slot without a volume was refused.
func (g *growths) remove(slot int32) error {
	v := g.volumes[slot]
	delete(g.volumes, slot)
	return g.store.exchange(v.node, v.pieces, nil)
}

// grow makes the volume as large as it wants to be, or leaves it as it is.
func (g *growths) grow(e event, counts bool) error {
	v, ok := g.volumes[e.slot]
	if !ok {
		return nil
	}
	by := e.size - int32(bytesOf(v.pieces)/units.GiB)
	pieces, ok := g.way.grow(g.store.freeOn(v.node), v.pieces, int64(by)*units.GiB)
	free := int32(g.store.freeOfNode(v.node * disksPerNode))
	if counts && g.counted.has(nodeSize-free) {
		g.grown.count(by, ok)
		g.pooled.count(by, free >= by)
		if ok {
			g.copied += copied(v.pieces, pieces) / units.GiB
			g.mostPieces = max(g.mostPieces, len(pieces))
		}
	}
	if !ok {
		return nil
	}
	g.volumes[e.slot] = held{v.node, pieces}
	return g.store.exchange(v.node, v.pieces, pieces)
}

// copied is how many bytes of the volume are elsewhere now: all or none.
func copied(before, after []piece) int64 {
	if before[0].disk == after[0].disk && before[0].extent.Start == after[0].extent.Start {
		return 0
	}
	return bytesOf(before)
}

// look counts the volumes in pieces, and those that are lost with either of two disks.
func (g *growths) look() {
	for _, v := range g.volumes {
		g.seen++
		if len(v.pieces) > 1 {
			g.inPieces++
		}
		if disks(v.pieces) > 1 {
			g.onTwoDisks++
		}
	}
	g.samples++
	g.used += g.store.used
}

// fill is the mean share of all bytes that was in use.
func (g *growths) fill() float64 {
	return part(g.used, int64(g.samples)*int64(len(g.store.nodes))*nodeSize)
}

// copies is how many bytes were copied for each that was gained.
func (g *growths) copies() float64 { return float64(g.copied) / float64(max(1, g.grown.placedBytes)) }

// disks is on how many disks the pieces are.
func disks(pieces []piece) int {
	n := 0
	for d := range disksPerNode {
		if onDisk(pieces, d).Len() > 0 {
			n++
		}
	}
	return n
}

// growIn simulates the ways on the same trace. New volumes fill nodes up to the limit, in percent.
func (p *plan) growIn(ways []way, demand, limit int32, counted band) ([]*growths, error) {
	s := scenario{&workloads[0], p.small.nodes, float64(demand) / 100, p.small.turnovers, p.seed}
	t := s.recordGrowing()
	if p.progress != nil {
		fmt.Fprintf(p.progress, "growth, %d nodes, %d %% demand: %d events\n", p.small.nodes, demand, len(t.events))
	}
	results := make([]*growths, len(ways))
	return results, p.inParallel(len(ways), func(i int) (err error) {
		policy := policy{"BestFit", bestFitWithin(limit, ways[i].headroom)}
		store := &policyStore{newCluster(t.disks), &policy, rand.New(rand.NewPCG(p.seed, 1))}
		if results[i], err = growAll(t, store, &ways[i], counted); err != nil {
			return fmt.Errorf("%s: %w", ways[i].name, err)
		}
		return nil
	})
}

// bestFitWithin is bestFit on the nodes that the volume fills to at most that percentage. It wants the headroom behind
// the volume, in percent of the size.
func bestFitWithin(limit, headroom int32) func(*cluster, *rand.Rand, int32) (place, bool) {
	return func(c *cluster, _ *rand.Rand, size int32) (place, bool) {
		most := limit * nodeSize / 100
		for s := c.extents.from(int(size + size*headroom/100)); s >= 0; s = c.extents.from(s + 1) {
			for _, key := range c.extents.buckets[s] {
				if p := at(key, size); nodeSize-int32(c.freeOfNode(p.disk))+size <= most {
					return p, true
				}
			}
		}
		return place{}, false
	}
}

// compareGrowth shows how many volumes can grow in which way: by how full their node is, and in a cluster.
func (p *plan) compareGrowth(w io.Writer) error {
	if err := p.compareGrowthByNode(w); err != nil {
		return err
	}
	return p.compareGrowthInCluster(w)
}

// compareGrowthByNode counts the requests on nodes that are about as full.
func (p *plan) compareGrowthByNode(w io.Writer) error {
	fmt.Fprintf(w, "### Growth, by how much of the node is used (%d nodes)\n\n", p.small.nodes)
	fmt.Fprintf(w, "| used, within 5 %% | requests | granted | bytes granted | of the bound's requests | of its bytes | copied |\n")
	fmt.Fprintf(w, "|---|---|---|---|---|---|---|\n")
	worst, worstBytes := 1., 1.
	for _, fill := range fills {
		results, err := p.growIn(ways, fill+5, fill+5, band{fill - 5, fill + 5})
		if err != nil {
			return err
		}
		for _, g := range results {
			requests, bytes := part(g.grown.placed, g.pooled.placed), part(g.grown.placedBytes, g.pooled.placedBytes)
			fmt.Fprintf(w, "| %d %%: %s | %d | %s | %s | %.4f | %.4f | %.2f |\n", fill, g.way.name, g.grown.asked,
				percent(part(g.grown.placed, g.grown.asked)), percent(part(g.grown.placedBytes, g.grown.askedBytes)),
				requests, bytes, g.copies())
			if g.way.hasTarget {
				worst, worstBytes = min(worst, requests), min(worstBytes, bytes)
			}
		}
	}
	fmt.Fprintf(w, "\nIn place, else in pieces: at least %s of the bound's requests, and %s of its bytes (target: %.2f).\n\n",
		verdict(worst, growthTarget), verdict(worstBytes, growthTarget), growthTarget)
	return nil
}

// compareGrowthInCluster counts all requests, on nodes that BestFit fills. It shows what growth costs, too.
func (p *plan) compareGrowthInCluster(w io.Writer) error {
	fmt.Fprintf(w, "### Growth in a cluster of %d nodes, by demand\n\n", p.small.nodes)
	fmt.Fprintf(w, "| demand | granted | bytes granted | of the bound's bytes | copied | volumes in pieces | on two disks | most pieces | new volumes: bytes placed | fill |\n")
	fmt.Fprintf(w, "|---|---|---|---|---|---|---|---|---|---|\n")
	for _, demand := range fills {
		results, err := p.growIn(slices.Insert(slices.Clone(ways), today+1, withHeadroom), demand, 100, band{0, 100})
		if err != nil {
			return err
		}
		for _, g := range results {
			fmt.Fprintf(w, "| %d %%: %s | %s | %s | %.4f | %.2f | %s | %s | %d | %s | %s |\n", demand, g.way.name,
				percent(part(g.grown.placed, g.grown.asked)), percent(part(g.grown.placedBytes, g.grown.askedBytes)),
				part(g.grown.placedBytes, g.pooled.placedBytes), g.copies(),
				percent(part(g.inPieces, g.seen)), percent(part(g.onTwoDisks, g.seen)), g.mostPieces,
				percent(part(g.added.placedBytes, g.added.askedBytes)), percent(g.fill()))
		}
	}
	fmt.Fprintln(w)
	return nil
}
