package disk

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/units"
)

// TestWipeSettings asserts that the policy and the rate of a volume stay with it, and apply to a wipe without settings.
// Those of a wipe in progress stay with it as well.
func TestWipeSettings(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	of := func(partition string) WipeSettings {
		t.Helper()
		v, found := ptr(d.Snapshot()).Volume(partition)
		if !found {
			t.Fatalf("%s is gone", partition)
		}
		return v.Wipe
	}
	again := func() {
		t.Helper()
		d.Close()
		l.removePartitions(t)
		d = l.open(t)
	}
	slow := WipeSettings{WipeOverwrite, 1 << 30}
	for i, o := range []CreateOptions{{Partition: guidA, Wipe: slow}, {Partition: guidB, Note: "of b"}, {Partition: guidC, Note: "of c", Wipe: WipeSettings{Policy: WipeNone}}} {
		o.Extent = extentMiB(2+4*int64(i), 4)
		if _, err := d.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: c2, Extent: extentMiB(40, 2), Wipe: WipeSettings{Policy: "Shred"}}); err == nil {
		t.Error("a policy was taken that does not exist")
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: c2, Extent: extentMiB(40, 2), Note: strings.Repeat("n", MaxNote+1)}); err == nil {
		t.Error("a note was taken that does not fit")
	}
	again()
	if of(guidA) != slow || of(guidB) != (WipeSettings{}) || of(guidC) != (WipeSettings{Policy: WipeNone}) {
		t.Errorf("after a restart: %+v", d.Snapshot().Volumes)
	}
	if err := d.SetWipe(ctx, guidB, slow); err != nil {
		t.Fatal(err)
	}
	if err := d.SetWipe(ctx, guidB, WipeSettings{Rate: -1}); err == nil {
		t.Error("a negative rate was taken")
	}
	if err := d.SetWipe(ctx, c3, slow); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a volume that is not there: %v", err)
	}
	again()
	if v, _ := ptr(d.Snapshot()).Volume(guidB); v.Wipe != slow || v.Note != "of b" {
		t.Errorf("set later: %+v", v)
	}
	if w, err := d.Wipe(ctx, guidA, WipeOptions{}); err != nil || w.Policy != WipeOverwrite || w.Method != methodOverwrite {
		t.Errorf("wiped as was kept with it: %+v, %v", w, err)
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := d.Wipe(short, guidB, WipeOptions{Policy: WipeSecureDiscard}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled from the start: %v", err)
	}
	cut, stop := context.WithCancel(ctx)
	if _, err := d.Wipe(cut, guidB, WipeOptions{Policy: WipeSecureDiscard, Progress: func(int64) { stop() }}); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
	if err := d.SetWipe(ctx, guidB, slow); !errors.Is(err, ErrInUse) {
		t.Errorf("of a volume that is being wiped: %v", err)
	}
	again()
	if w, err := d.Wipe(ctx, guidB, WipeOptions{}); err != nil || w.Policy != WipeSecureDiscard {
		t.Errorf("taken up as it was begun: %+v, %v", w, err)
	}
	if w, err := d.Wipe(ctx, guidC, WipeOptions{}); err != nil || w.Policy != WipeNone {
		t.Errorf("wiped as was kept with it: %+v, %v", w, err)
	}
}

// TestRateOfEveryMethod asserts that with a rate no method does more than a quarter of a second's worth in one step.
// The rate kept with a volume applies to what is zeroed for it.
func TestRateOfEveryMethod(t *testing.T) {
	const rate = 400 * units.MiB // steps of at most 100 MiB
	var steps []int64
	note := func(name string) method {
		return method{name, 1 << 30, func(d *blockDevice, off, n int64) error {
			steps = append(steps, n)
			return punchHole(d, off, n)
		}}
	}
	l := initialized(t, 900*units.MiB, 512)
	ctx := t.Context()
	check := func(what string, total int64) {
		t.Helper()
		if len(steps) == 0 || slices.Max(steps) > rate/4 {
			t.Errorf("%s: steps of %v bytes", what, steps)
		}
		sum := int64(0)
		for _, n := range steps {
			sum += n
		}
		if sum != total {
			t.Errorf("%s: %d bytes in all, not %d", what, sum, total)
		}
		steps = nil
	}
	l.wipeMethods.overwrite, l.wipeMethods.secureDiscard = note(methodOverwrite), note(methodSecureDiscard)
	for _, test := range []struct {
		policy WipePolicy
		method method
	}{{WipeZero, note(methodPunch)}, {WipeZero, note(methodZeroOut)}, {WipeOverwrite, l.wipeMethods.overwrite}, {WipeSecureDiscard, l.wipeMethods.secureDiscard}} {
		l.useMethods(test.method)
		d := l.open(t)
		if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 200)}); err != nil {
			t.Fatal(err)
		}
		if w, err := d.Wipe(ctx, guidA, WipeOptions{Policy: test.policy, Rate: rate}); err != nil || w.Method != test.method.name {
			t.Fatalf("%+v, %v", w, err)
		}
		check(test.method.name, 200*units.MiB)
		d.Close()
	}
	l.useMethods(note(methodPunch))
	d := l.open(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(2, 150), Raw: true, Wipe: WipeSettings{Policy: WipeZero, Rate: rate}}); err != nil {
		t.Fatal(err)
	}
	check("a raw volume", 150*units.MiB)
	if _, err := d.Grow(ctx, guidB, 300*units.MiB); err != nil {
		t.Fatal(err)
	}
	check("a volume that grows", 150*units.MiB)
}
