package controller

import (
	"testing"
	"time"
)

// TestAbsences asserts that an absence lasts without a break, and begins again when the object was there meanwhile.
func TestAbsences(t *testing.T) {
	now := time.Now()
	a := NewAbsences(func() time.Time { return now })
	elapsed := func(want time.Duration) {
		t.Helper()
		if got := a.Elapsed("n"); got != want {
			t.Errorf("it is absent for %v, want %v", got, want)
		}
	}
	if a.IsAbsent("n") {
		t.Error("an object that was never absent is")
	}
	elapsed(0)
	now = now.Add(time.Minute)
	elapsed(time.Minute)
	if !a.IsAbsent("n") || a.IsAbsent("other") {
		t.Error("the absence is not known, or that of another object is")
	}
	a.End("n")
	if a.IsAbsent("n") {
		t.Error("an object that is back is absent")
	}
	elapsed(0)
}
