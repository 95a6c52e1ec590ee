package vm

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/berthdev/berth/test/vm/wire"
)

// TestModel asserts that the model notices each kind of error after a power cut.
func TestModel(t *testing.T) {
	const guid = "a0000000-0000-4000-8000-00000000000a"
	steps := func(all ...string) []wire.Step {
		var list []wire.Step
		for _, s := range all {
			begun := wire.Step{Do: s, Partition: guid, Start: mib, Length: 4 * mib}
			if s[0] == '?' {
				begun.Do = s[1:]
			} else {
				begun.Done = true
			}
			if begun.Do == "grow" || begun.Do == "piece" {
				begun.Length = 5 * mib
			}
			list = append(list, begun)
		}
		return list
	}
	found := func(phase string, start, length int64) []wire.Found {
		return []wire.Found{{Partition: guid, Phase: phase, Start: start * mib, Length: length * mib}}
	}
	inPieces := func(at int64, wrong string) []wire.Found {
		f := found("Formatted", 1, 5)
		f[0].Pieces, f[0].Wrong = []int64{mib + at}, wrong
		return f
	}
	for name, test := range map[string]struct {
		steps []wire.Step
		found []wire.Found
		good  bool
		whole int
	}{
		"as acknowledged":            {steps("create", "format", "fill"), found("Formatted", 1, 4), true, 1},
		"lost":                       {steps("create"), nil, false, 0},
		"not yet there":              {steps("?create"), nil, true, 0},
		"there before it was said":   {steps("?create"), found("Reserved", 1, 4), true, 0},
		"never asked for":            {nil, found("Reserved", 1, 4), false, 0},
		"elsewhere":                  {steps("create"), found("Reserved", 2, 4), false, 0},
		"format lost":                {steps("create", "format"), found("Reserved", 1, 4), false, 0},
		"formatted without a reason": {steps("create"), found("Formatted", 1, 4), false, 0},
		"perhaps formatted":          {steps("create", "?format"), found("Formatted", 1, 4), true, 0},
		"growth lost":                {steps("create", "grow"), found("Reserved", 1, 4), false, 0},
		"perhaps grown":              {steps("create", "?grow"), found("Reserved", 1, 5), true, 0},
		"shrunk":                     {steps("create", "?grow"), found("Reserved", 1, 3), false, 0},
		"a piece":                    {steps("create", "format", "piece"), inPieces(wire.PieceOffset(1), ""), true, 0},
		"perhaps a piece":            {steps("create", "format", "?piece"), inPieces(wire.PieceOffset(1), ""), true, 0},
		"piece lost":                 {steps("create", "format", "piece"), found("Formatted", 1, 4), false, 0},
		"piece elsewhere":            {steps("create", "format", "piece"), inPieces(wire.PieceOffset(2), ""), false, 0},
		"incomplete":                 {steps("create", "format", "piece"), inPieces(wire.PieceOffset(1), "a piece is gone"), false, 0},
		"a piece was wiped":          {steps("create", "format", "piece", "?wipe"), found("Wiping", 1, 4), true, 0},
		"back from the dead":         {steps("create", "wipe"), found("Wiping", 1, 4), false, 0},
		"wiped":                      {steps("create", "wipe"), nil, true, 0},
		"wiped without a reason":     {steps("create", "format", "fill"), found("Wiping", 1, 4), false, 1},
		"perhaps wiped":              {steps("create", "format", "fill", "?wipe"), nil, true, 0},
		"being wiped":                {steps("create", "format", "fill", "?wipe"), found("Wiping", 1, 4), true, 0},
	} {
		m := newModel()
		for _, s := range test.steps {
			m.take(s)
		}
		whole, err := m.check(wire.State{Volumes: test.found})
		if (err == nil) != test.good || len(whole) != test.whole {
			t.Errorf("%s: %v, %v", name, whole, err)
		}
	}
}

// TestPlatter asserts that what was flushed is on the medium, and that what was not may be lost.
func TestPlatter(t *testing.T) {
	p, err := newPlatter(filepath.Join(t.TempDir(), "disk"), 1*mib, 512)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	r := rand.New(rand.NewPCG(1, 2))
	flushed, cachedOnly := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	put := func(b []byte, off int64) {
		if err := p.write(cached{off, int64(len(b)), b}); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want []byte) bool {
		got := make([]byte, len(want))
		if err := p.read(got, 0); err != nil {
			t.Fatal(err)
		}
		return bytes.Equal(got, want)
	}
	put(flushed, 0)
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	put(cachedOnly, 0)
	if !holds(cachedOnly) {
		t.Error("what was written is not read")
	}
	trap := p.setTrap()
	if err := p.flush(); err == nil {
		t.Error("a flush went through the trap")
	}
	<-trap
	if err := p.powerCut(r, 0); err != nil || !holds(flushed) || p.dropped != 8 {
		t.Errorf("after a power cut that kept nothing: %v, %d dropped", err, p.dropped)
	}
	put(cachedOnly, 0)
	if err := p.powerCut(r, 0.5); err != nil || holds(flushed) || holds(cachedOnly) {
		t.Errorf("after a power cut that kept half: %v, %d dropped, %d kept", err, p.dropped, p.kept)
	}
	if err := p.write(cached{off: 0, length: 4096}); err != nil || !holds(make([]byte, 4096)) {
		t.Errorf("zeros: %v", err)
	}
}
