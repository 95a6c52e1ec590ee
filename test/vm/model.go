package vm

import (
	"errors"
	"fmt"

	"github.com/berthdev/berth/test/vm/wire"
)

// model is what a disk must hold, by what the guest has acknowledged.
type model struct {
	volumes map[string]*modeled // by partition
	steps   int                 // that were acknowledged
	open    int                 // that were announced and not acknowledged when the power was cut
}

// modeled is one volume. Each step of it is not begun, announced or done.
type modeled struct {
	start, length, grown         int64 // grown: the length that was announced, or 0
	create, format, fill, wiping progress
	// more is the file that uses the space by which the volume has grown.
	more progress
}

type progress int

const (
	never progress = iota
	announced
	done
)

func newModel() *model { return &model{volumes: map[string]*modeled{}} }

// take notes a step.
func (m *model) take(s wire.Step) {
	to := announced
	if s.Done {
		to = done
		m.steps++
	}
	v := m.volumes[s.Partition]
	if v == nil {
		v = &modeled{start: s.Start, length: s.Length}
		m.volumes[s.Partition] = v
	}
	switch s.Do {
	case "create":
		v.create = to
	case "format":
		v.format = to
	case "fill":
		v.fill = to
	case "more":
		v.more = to
	case "grow", "piece":
		v.grown = s.Length
		if s.Done {
			v.length, v.grown = s.Length, 0
		}
	case "wipe":
		v.wiping = to
	}
}

// check asserts that what the engine found after a power cut is what was acknowledged. It then adopts the outcome of
// the other steps. It returns the volumes whose data must be whole.
func (m *model) check(s wire.State) (whole []string, err error) {
	var wrong []error
	fail := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if s.OutOf != "" {
		fail("the disk is out of service: %s", s.OutOf)
	}
	if s.Invalid != "" {
		fail("an invariant of the snapshot does not hold: %s", s.Invalid)
	}
	m.open = 0
	found := map[string]wire.Found{}
	for _, f := range s.Volumes {
		found[f.Partition] = f
		if m.volumes[f.Partition] == nil {
			fail("volume %s at %d was never asked for", f.Partition, f.Start)
		}
	}
	for guid, v := range m.volumes {
		f, ok := found[guid]
		if v.unacknowledged() {
			m.open++
		}
		if !ok {
			if v.create == done && v.wiping == never {
				fail("volume %s at %d is lost", guid, v.start)
			}
			delete(m.volumes, guid)
			continue
		}
		if err := v.became(f); err != nil {
			fail("volume %s: %w", guid, err)
		}
		if v.fill == done && v.wiping == never {
			whole = append(whole, guid)
		}
	}
	return whole, errors.Join(wrong...)
}

func (v *modeled) unacknowledged() bool {
	return v.create == announced || v.format == announced || v.fill == announced || v.wiping == announced || v.more == announced || v.grown != 0
}

// became returns an error unless the volume may be in the state found, and adopts that state.
func (v *modeled) became(f wire.Found) error {
	// A wipe drops pieces, the last one first.
	shortened := f.Phase == "Wiping" && f.Length < v.length
	if f.Start != v.start || f.Length != v.length && !shortened && (f.Length != v.grown || v.grown == 0) {
		return fmt.Errorf("it is at %d, %d bytes long; it was made at %d, with %d", f.Start, f.Length, v.start, v.length)
	}
	if f.Wrong != "" {
		return fmt.Errorf("it is incomplete: %s", f.Wrong)
	}
	for i, at := range f.Pieces {
		if at != v.start+wire.PieceOffset(i+1) {
			return fmt.Errorf("its piece %d is at %d", i+1, at)
		}
	}
	may := map[string]bool{
		"Reserved":  v.format != done,
		"Formatted": v.format != never,
		"Wiping":    v.wiping != never,
	}
	if v.wiping == done || !may[f.Phase] {
		return fmt.Errorf("it is %s: %+v", f.Phase, *v)
	}
	v.length, v.grown, v.create = f.Length, 0, done
	switch f.Phase {
	case "Reserved":
		v.format, v.wiping, v.more = never, never, never
	case "Formatted":
		v.format, v.wiping = done, never
		if v.fill == announced {
			v.fill = never
		}
		if v.more == announced {
			v.more = never
		}
	case "Wiping":
		v.wiping = announced
	}
	return nil
}
