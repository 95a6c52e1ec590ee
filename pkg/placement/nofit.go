package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Cause says what a node lacks.
type Cause int

const (
	// NoDisk: the node has no disk of the class.
	NoDisk Cause = iota
	// TooSmall: the largest free extent is smaller than one of the volumes.
	TooSmall
	// TooLittle: the free extents together are smaller than the volumes together.
	TooLittle
	// TooFewDisks: not enough different disks for the volumes with Apart.
	TooFewDisks
	// NotTogether: each volume has room, but there is none for all of them.
	NotTogether
	// GaveUp: there may be room for all of them, but the search for it was given up.
	GaveUp
	// NotInPieces: the largest free extents of no disk hold one of the volumes, in as many pieces as it may have.
	NotInPieces
)

// NoFit says why a node cannot take a pod's volumes. It is about one class: the first in the alphabet of those that do
// not fit.
type NoFit struct {
	Cause Cause
	// Class that lacks room.
	Class string
	// Sizes of the requested volumes of the class, in bytes, in falling order. With TooFewDisks, only of those with
	// Apart. With TooSmall, only of those that may not have pieces there, and with NotInPieces, only of the others.
	Sizes []int64
	// MaxPieces is how many pieces the largest volume may have, when the cause is NotInPieces. InPieces is how large it
	// could be, in bytes.
	MaxPieces int
	InPieces  int64
	// Largest free extent of the class on the node, in bytes.
	Largest int64
	// Free space of the class on the node, in bytes.
	Free int64
	// Extents is how many free extents of the class the node has.
	Extents int
	// Disks is how many disks of the node could hold the volumes with Apart, when the cause is TooFewDisks. It is fewer
	// than len(Sizes).
	Disks int
	// Never is true when the node could not take the volumes even if its disks were empty. It is false when that is not
	// known.
	Never bool
	// tooSmallDisks is true when a volume is larger than every disk.
	tooSmallDisks bool
	// noDeviceMapper is true when a volume may have pieces, but not on this node.
	noDeviceMapper bool
}

// withOutcome corrects the cause by the outcome of the search: NotTogether is certain only if the search was complete.
func (e *NoFit) withOutcome(o outcome) *NoFit {
	if o == gaveUp && e.Cause == NotTogether {
		e.Cause = GaveUp
	}
	return e
}

// Wanted is the size that was compared: of the largest volume with TooSmall, NoDisk, NotInPieces and TooFewDisks, else
// of all volumes of the class.
func (e *NoFit) Wanted() int64 {
	if e.Cause != TooLittle && e.Cause != NotTogether && e.Cause != GaveUp {
		return e.Sizes[0]
	}
	return sum(e.Sizes)
}

// Shortfall is how many bytes are missing at least: from the largest extent with TooSmall, in total with TooLittle. It
// is zero when space is not what is missing.
func (e *NoFit) Shortfall() int64 {
	switch e.Cause {
	case TooSmall, NoDisk:
		return e.Wanted() - e.Largest
	case NotInPieces:
		return e.Wanted() - e.InPieces
	case TooLittle:
		return e.Wanted() - e.Free
	}
	return 0
}

// Error describes the refusal with this node's figures.
func (e *NoFit) Error() string {
	switch e.Cause {
	case NoDisk:
		return fmt.Sprintf("no disk of class %s on the node", e.Class)
	case TooSmall:
		have := "largest free extent of class " + e.Class + " is " + sizeDown(e.Largest)
		if e.Largest == 0 {
			have = "no free space of class " + e.Class
		}
		have += ", wants " + sizeUp(e.Wanted())
		if e.tooSmallDisks {
			return have + ", which no disk there could ever hold"
		}
		return have + e.whyNoPieces()
	case NotInPieces:
		have := fmt.Sprintf("%d free extents of a disk of class %s add up to %s, wants %s", e.MaxPieces, e.Class, sizeDown(e.InPieces), sizeUp(e.Wanted()))
		if e.tooSmallDisks {
			have += ", which no disk there could ever hold"
		}
		return have
	case TooLittle:
		return fmt.Sprintf("free space of class %s is %s, %s", e.Class, sizeDown(e.Free), e.volumesWant())
	case TooFewDisks:
		return fmt.Sprintf("wants %d different disks of class %s, the node has %d that could hold them",
			len(e.Sizes), e.Class, e.Disks)
	case GaveUp:
		return e.Reason() + ": " + e.extents()
	}
	return fmt.Sprintf("%d volumes of class %s (%s) don't fit together: %s", len(e.Sizes), e.Class, e.sizes(), e.extents())
}

// extents describes the free extents of the class.
func (e *NoFit) extents() string {
	if e.Extents > 1 {
		return fmt.Sprintf("%d free extents, the largest %s, %s in all", e.Extents, sizeDown(e.Largest), sizeDown(e.Free))
	}
	return "free extents " + sizeDown(e.Free)
}

// Reason is Error without the node's figures. Nodes with the same cause get the same sentence, so that an event over
// many nodes counts them instead of listing each.
func (e *NoFit) Reason() string {
	switch e.Cause {
	case NoDisk:
		return "no disk of class " + e.Class
	case TooSmall, NotInPieces:
		switch {
		case e.tooSmallDisks:
			return fmt.Sprintf("no disk of class %s could ever hold %s", e.Class, sizeUp(e.Wanted()))
		case e.Largest == 0:
			return "no free space of class " + e.Class
		case e.Cause == NotInPieces:
			return fmt.Sprintf("no disk of class %s has %s free in at most %d pieces", e.Class, sizeUp(e.Wanted()), e.MaxPieces)
		}
		return fmt.Sprintf("largest free extent of class %s is below %s", e.Class, sizeUp(e.Wanted())) + e.whyNoPieces()
	case TooLittle:
		return fmt.Sprintf("not enough free space of class %s, %s", e.Class, e.volumesWant())
	case TooFewDisks:
		return fmt.Sprintf("too few disks of class %s have room for %d volumes on different disks", e.Class, len(e.Sizes))
	case GaveUp:
		return fmt.Sprintf("no place was found for %d volumes of class %s (%s) together, the search was given up", len(e.Sizes), e.Class, e.sizes())
	}
	return fmt.Sprintf("%d volumes of class %s (%s) don't fit together", len(e.Sizes), e.Class, e.sizes())
}

// whyNoPieces ends a sentence about an extent that is too small for a volume that may have pieces elsewhere.
func (e *NoFit) whyNoPieces() string {
	if e.noDeviceMapper {
		return ", and there are no pieces without the device mapper in the node's kernel"
	}
	return ""
}

// Alike reports whether both have the same Reason, without building the text.
func (e *NoFit) Alike(other *NoFit) bool {
	return e.Cause == other.Cause && e.Class == other.Class && e.tooSmallDisks == other.tooSmallDisks &&
		e.noDeviceMapper == other.noDeviceMapper && e.MaxPieces == other.MaxPieces && (e.Largest == 0) == (other.Largest == 0) && slices.Equal(e.Sizes, other.Sizes)
}

// Nearer reports whether the node has more of what is missing than another node whose NoFit is Alike.
func (e *NoFit) Nearer(other *NoFit) bool {
	switch e.Cause {
	case TooSmall:
		return e.Largest > other.Largest
	case NotInPieces:
		return e.InPieces > other.InPieces
	case TooLittle:
		return e.Free > other.Free
	case TooFewDisks:
		return e.Disks > other.Disks
	}
	return cmp.Or(cmp.Compare(e.Free, other.Free), cmp.Compare(e.Largest, other.Largest)) > 0
}

// Best is how much the node has of what is missing: the figures that [NoFit.Reason] leaves out. It is empty if no
// amount would suffice, or if there is none.
func (e *NoFit) Best() string {
	switch {
	case e.Cause == NoDisk, e.tooSmallDisks, e.Largest == 0:
		return ""
	case e.Cause == TooSmall:
		return sizeDown(e.Largest)
	case e.Cause == NotInPieces:
		return sizeDown(e.InPieces)
	case e.Cause == TooLittle:
		return sizeDown(e.Free) + " in all"
	case e.Cause == TooFewDisks:
		return fmt.Sprintf("%d of %d disks", e.Disks, len(e.Sizes))
	}
	return e.extents()
}

// volumesWant describes the volumes and their size in all.
func (e *NoFit) volumesWant() string {
	return fmt.Sprintf("%d volumes (%s) want %s", len(e.Sizes), e.sizes(), sizeUp(e.Wanted()))
}

// maxNamed is how many volumes a message names one by one.
const maxNamed = 4

// sizes lists the first sizes, and counts the rest.
func (e *NoFit) sizes() string {
	named := e.Sizes[:min(len(e.Sizes), maxNamed)]
	parts := make([]string, 0, maxNamed+1)
	for _, size := range named {
		parts = append(parts, sizeUp(size))
	}
	if more := len(e.Sizes) - len(named); more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(parts, " + ")
}

// explain returns why Plan failed for the class.
func explain(node *Node, requests []Request, class string) *NoFit {
	w := wantedOf(requests, class)
	return explainWanted(node, class, &w)
}

// wanted is what the requests of one class want.
type wanted struct {
	// sizes of all volumes, and of those with Apart, in falling order.
	sizes, apart []int64
	// whole are the sizes of the volumes that may not have pieces, and split those of the others, in falling order.
	whole, split []int64
	// maxPieces is how many pieces the largest volume may have that may have them.
	maxPieces int
}

func wantedOf(requests []Request, class string) wanted {
	w := wanted{
		sizes: sizesOf(requests, class, func(*Request) bool { return true }),
		apart: sizesOf(requests, class, func(r *Request) bool { return r.Apart }),
		split: sizesOf(requests, class, (*Request).Splits),
	}
	if len(w.split) == 0 {
		w.whole = w.sizes
		return w
	}
	w.whole = sizesOf(requests, class, func(r *Request) bool { return !r.Splits() })
	for i := range requests {
		if r := &requests[i]; r.Class == class && r.Splits() && r.Size == w.split[0] {
			w.maxPieces = max(w.maxPieces, r.MaxPieces)
		}
	}
	return w
}

// largestWhole is the size of the largest volume that may not have pieces; zero if all may.
func (w *wanted) largestWhole() int64 {
	if len(w.whole) == 0 {
		return 0
	}
	return w.whole[0]
}

// on returns what the requests want on the node: without the device mapper no volume has pieces.
func (w *wanted) on(node *Node) *wanted {
	if node.Pieces || len(w.split) == 0 {
		return w
	}
	return &wanted{sizes: w.sizes, apart: w.apart, whole: w.sizes}
}

// explainWanted is explain for a caller that knows what the requests want of the class. The error keeps its slices.
func explainWanted(node *Node, class string, all *wanted) *NoFit {
	w := all.on(node)
	e := &NoFit{Class: class, Sizes: w.sizes}

	var buffers [2][16]diskFree
	now, empty := buffers[0][:0], buffers[1][:0]
	known := true
	for d := range node.Disks {
		disk := &node.Disks[d]
		if disk.Class != class {
			continue
		}
		r := diskFree{largest: disk.Free.Largest().Len(), total: disk.Free.Total()}
		if r.inPieces = r.largest; len(w.split) > 0 {
			r.inPieces = disk.LargestInPieces(w.maxPieces)
		}
		now, empty = append(now, r), append(empty, diskFree{disk.Usable, disk.Usable, disk.Usable})
		known = known && disk.Usable > 0
		e.Extents += disk.Free.Len()
		e.Largest = max(e.Largest, r.largest)
		e.InPieces = max(e.InPieces, r.inPieces)
		e.Free = AddCapped(e.Free, r.total)
	}

	e.Cause, e.Disks = causeOf(now, w)
	whenEmpty, _ := causeOf(empty, w)
	e.Never = known && whenEmpty != NotTogether
	e.tooSmallDisks = known && (whenEmpty == TooSmall || whenEmpty == NotInPieces)
	switch e.Cause {
	case TooFewDisks:
		e.Sizes = w.apart
	case TooSmall:
		e.Sizes, e.noDeviceMapper = w.whole, w != all && all.largestWhole() <= e.Largest
	case NotInPieces:
		e.Sizes, e.MaxPieces = w.split, w.maxPieces
	}
	if e.Cause != NotInPieces {
		e.InPieces = 0
	}
	return e
}

// diskFree is the free space of a disk. inPieces is the largest volume that fits there in pieces.
type diskFree struct {
	largest, total, inPieces int64
}

// causeOf finds what the disks lack. If every simple check passes, the cause is NotTogether. With TooFewDisks it also
// returns how many disks could hold the volumes with Apart.
func causeOf(disks []diskFree, w *wanted) (Cause, int) {
	if len(disks) == 0 {
		return NoDisk, 0
	}
	var largest, total, inPieces int64
	for _, d := range disks {
		largest, total, inPieces = max(largest, d.largest), AddCapped(total, d.total), max(inPieces, d.inPieces)
	}
	if w.largestWhole() > largest {
		return TooSmall, 0
	}
	if len(w.split) > 0 && w.split[0] > inPieces {
		return NotInPieces, 0
	}
	// Checked before the totals: where both are missing, more space alone would not help.
	for i, size := range w.apart {
		able := 0
		for _, d := range disks {
			if d.inPieces >= size {
				able++
			}
		}
		if able <= i {
			return TooFewDisks, able
		}
	}
	if sum(w.sizes) > total {
		return TooLittle, 0
	}
	return NotTogether, 0
}

// sizesOf returns the sizes of the requests of the class that are wanted, in falling order.
func sizesOf(requests []Request, class string, isWanted func(*Request) bool) []int64 {
	matches := func(r *Request) bool { return r.Class == class && isWanted(r) }
	n := 0
	for i := range requests {
		if matches(&requests[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	sizes := make([]int64, 0, n)
	for i := range requests {
		if matches(&requests[i]) {
			sizes = append(sizes, requests[i].Size)
		}
	}
	slices.SortFunc(sizes, func(a, b int64) int { return cmp.Compare(b, a) })
	return sizes
}

func sum(sizes []int64) int64 {
	var total int64
	for _, size := range sizes {
		total = AddCapped(total, size)
	}
	return total
}
