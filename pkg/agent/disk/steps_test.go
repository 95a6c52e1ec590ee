package disk

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/extent"
)

// step is one change of a table, as Create, MarkFormatted and Wipe make it, or several without a restart in between.
type step struct {
	name string
	do   func(t testing.TB, s *store) error
	then []step
}

// done is a table that was acknowledged, and how long the log was then.
type done struct {
	entries []entry
	log     int
}

// all does the step and those that follow it, and returns the table after each.
func (st step) all(t testing.TB, m *memDisk, s *store) []done {
	t.Helper()
	if err := st.do(t, s); err != nil {
		t.Fatalf("%s: %v", st.name, err)
	}
	tables := []done{{slices.Clone(s.table.entries), len(m.log)}}
	for _, next := range st.then {
		tables = append(tables, next.all(t, m, s)...)
	}
	return tables
}

// flat are the step and all that follow, in order.
func (st step) flat() []step {
	steps := []step{st}
	for _, next := range st.then {
		steps = append(steps, next.flat()...)
	}
	return steps
}

func (st step) and(then ...step) step {
	st.then = append(slices.Clone(st.then), then...)
	return st
}

func reserve(guid string, start, length int64) step {
	return step{name: "reserve", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: at(start, length), Ephemeral: true})
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

func raw(guid string, start, length int64) step {
	return step{name: "raw", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Extent: at(start, length), Raw: true})
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

func grow(guid string, length int64) step {
	return step{name: "grow", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withLength(guid, length*mib)
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

// early is a reserve as Create makes it, with what the owner does afterwards.
func early(guid string, start, length int64) step {
	return hasty(guid, start, length).and(step{name: "finish", do: func(t testing.TB, s *store) error { return s.finish(quiet(t)) }})
}

// hasty is early, before the owner has done anything afterwards.
func hasty(guid string, start, length int64) step {
	return step{name: "early", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: at(start, length)})
		if err != nil {
			return err
		}
		return s.putNew(quiet(t), next, e, true, nil)
	}}
}

func phase(guid string, to Phase) step {
	return step{name: string(to), do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, to)
		if err != nil {
			return err
		}
		return s.put(quiet(t), next, e)
	}}
}

// ahead is what Format does while mkfs runs. back is what it does when mkfs fails.
func ahead(guid string) step {
	return step{name: "ahead", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, Formatted)
		if err != nil {
			return err
		}
		return s.putAhead(quiet(t), next, e)
	}}
}

func back() step {
	return step{name: "back", do: func(t testing.TB, s *store) error {
		return s.takeBack(quiet(t))
	}}
}

func remove(guid string) step {
	return step{name: "remove", do: func(t testing.TB, s *store) error {
		i := s.table.find(guid)
		next, err := s.table.without(guid)
		if err != nil {
			return err
		}
		return s.drop(quiet(t), next, s.table.entries[i].index)
	}}
}

// life is what a disk goes through: entries in one sector and in others.
func life() []step {
	steps := []step{early(a, 2, 3), phase(a, Formatted), early(b, 5, 1), phase(b, Formatted), phase(a, Wiping), remove(a), reserve(c, 2, 3)}
	for i := range int64(40) {
		make := []func(string, int64, int64) step{reserve, early}[i%2]
		steps = append(steps, make(uuid.NewSHA1(uuid.Nil, []byte{byte(i)}).String(), 6+i, 1))
	}
	other := uuid.NewSHA1(uuid.Nil, []byte{0}).String()
	return append(steps, phase(b, Wiping), remove(b),
		// Formatted as Format does it, alone and with other changes in between.
		ahead(c).and(phase(c, Formatted)),
		hasty(c4, 46, 1).and(ahead(c4), phase(c4, Formatted)),
		hasty(c5, 48, 1).and(ahead(other), ahead(c5), hasty(c6, 49, 1), ahead(c6), back(), phase(c5, Formatted)),
		early(a, 50, 1).and(ahead(a), early(b, 51, 1), ahead(b), phase(a, Formatted), phase(b, Formatted)),
		reserve(c2, 52, 1).and(ahead(c2), back(), ahead(c2), phase(a, Wiping), phase(c2, Wiping)),
		raw(c3, 57, 1), grow(c3, 2), grow(c, 4),
		reserve(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), 47, 1).and(
			ahead(uuid.NewSHA1(uuid.Nil, []byte("x")).String()), grow(c3, 3), phase(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), Formatted)),
		phase(c3, Wiping), remove(c3),
	)
}

// anyStep is a random step that is possible with the table, or several of them.
func anyStep(random *rand.Rand, now table) step {
	var id [16]byte
	for i := range id {
		id[i] = byte(random.Uint32())
	}
	guid := uuid.NewSHA1(uuid.Nil, id[:]).String()
	start, length := 2+random.Int64N(50), 1+random.Int64N(3)
	made := []func(string, int64, int64) step{reserve, early}[random.IntN(2)](guid, start, length)
	if random.IntN(4) == 0 {
		made = raw(guid, start, length)
	}
	var possible []step
	// The last MiBs are for the change after a recovery.
	if now.free().Contains(at(start, length)) {
		possible = append(possible, made, made)
		if made.name != "raw" {
			possible = append(possible, made.and(ahead(guid), phase(guid, Formatted)), made.and(ahead(guid), back()),
				hasty(guid, start, length).and(ahead(guid), phase(guid, Formatted)))
		}
	}
	for _, e := range now.entries {
		if !e.isVolume() {
			continue
		}
		switch phaseOf[e.kind] {
		case Reserved:
			possible = append(possible, phase(e.guid, Formatted), ahead(e.guid).and(phase(e.guid, Formatted)), phase(e.guid, Wiping))
			if len(possible) > 4 {
				// Another change between the two halves.
				possible = append(possible, ahead(e.guid).and(possible[0], phase(e.guid, Formatted)))
			}
		case Formatted:
			possible = append(possible, phase(e.guid, Wiping))
			if e.extent.End < 53*mib && now.free().Contains(extent.New(e.extent.End, mib)) {
				possible = append(possible, grow(e.guid, e.extent.Len()/mib+1))
			}
		case Wiping:
			possible = append(possible, remove(e.guid))
		}
	}
	if len(possible) == 0 {
		return back()
	}
	return possible[random.IntN(len(possible))]
}
