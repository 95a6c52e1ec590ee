package testenv

import (
	"testing"
	"time"
)

// Patience is how long a test waits for what takes milliseconds. The machine may do other work, too.
const Patience = time.Minute

// Receive receives a value, or the zero value of a closed channel. The test fails if neither comes in time.
func Receive[T any](t testing.TB, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(Patience):
		t.Fatalf("%s: nothing arrived within %v", what, Patience)
	}
	return value
}

// Eventually looks until check returns nil.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	EventuallyWithin(t, Patience, what, check)
}

// EventuallyWithin is Eventually for what may take another time.
func EventuallyWithin(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.After(timeout)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
	}
}
