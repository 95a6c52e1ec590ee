package controller

import (
	"sync"
	"time"
)

// Absences remembers since when objects have been absent without a break. It uses times of this process only: their
// differences do not change when the clock is set. So each absence begins again when another process leads.
type Absences struct {
	now func() time.Time

	mu    sync.Mutex
	since map[string]time.Time
}

// NewAbsences returns an empty memory. now is the clock.
func NewAbsences(now func() time.Time) *Absences {
	return &Absences{now: now, since: map[string]time.Time{}}
}

// Elapsed is how long the object has been absent, which it is now. The absence begins now if none is known.
func (a *Absences) Elapsed(key string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	since, known := a.since[key]
	if !known {
		since = now
		a.since[key] = now
	}
	return now.Sub(since)
}

// IsAbsent reports whether an absence of the object is known.
func (a *Absences) IsAbsent(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, known := a.since[key]
	return known
}

// End ends the absence of an object that is there.
func (a *Absences) End(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.since, key)
}
