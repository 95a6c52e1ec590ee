package agent

import (
	"slices"
	"testing"
	"time"
)

// TestRetries asserts that the pauses between retries grow one by one, and that rescans after events do not count. The
// first pause is used again when no retry is wanted.
func TestRetries(t *testing.T) {
	r := newRetries()
	var waits []time.Duration
	retry := func() {
		t.Helper()
		after, change := r.next(true)
		if !change {
			t.Fatalf("no retry is scheduled after %v", waits)
		}
		waits = append(waits, after)
		for range 3 { // events
			if after, change := r.next(true); change {
				t.Errorf("an event moved the retry to %v", after)
			}
		}
		r.fired()
	}
	for range 3 {
		retry()
	}
	if after, change := r.next(false); after != 0 || !change {
		t.Errorf("a retry stays scheduled that is not wanted: %v, %v", after, change)
	}
	retry()
	want := []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 10 * time.Second}
	if !slices.Equal(waits, want) {
		t.Errorf("retries after %v, want %v", waits, want)
	}
}
