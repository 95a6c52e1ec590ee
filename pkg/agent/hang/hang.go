// Package hang bounds how long a call may wait for a device. A device that hangs returns neither data nor an error, and
// the thread that waits for it cannot be woken. At most one thread waits for a device after its call was given up.
package hang

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrHangs means that the device has not answered in time, or not yet since an earlier call.
var ErrHangs = errors.New("the device hangs")

// Guard remembers the devices that have not answered. The zero value is ready for use.
type Guard struct {
	mu sync.Mutex
	// hanging are the devices whose call was given up. Each channel is closed when the device answers after all.
	hanging map[string]chan struct{}
}

// Call calls ask, which may take for ever, about the device with that key. When its time is up, ask goes on alone, and
// the device gets no further call before it has ended. Its result then goes to late, if that is set. The error is
// ErrHangs, or that of the context, or that of ask.
func Call[T any](ctx context.Context, g *Guard, key string, timeout time.Duration, ask func() (T, error), late func(T)) (T, error) {
	var none T
	if g.isHanging(key) {
		return none, ErrHangs
	}
	type result struct {
		value T
		err   error
	}
	// Unbuffered: the result is either received below or passed to late.
	results, givenUp, ended := make(chan result), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		value, err := ask()
		select {
		case results <- result{value, err}:
		case <-givenUp:
			if late != nil && err == nil {
				late(value)
			}
		}
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case r := <-results:
		return r.value, r.err
	case <-timer.C:
	case <-ctx.Done():
	}
	g.giveUp(key, ended)
	close(givenUp)
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	return none, ErrHangs
}

// giveUp records that the device has not answered, until ended is closed.
func (g *Guard) giveUp(key string, ended chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hanging == nil {
		g.hanging = map[string]chan struct{}{}
	}
	g.hanging[key] = ended
}

// isHanging reports whether the device has not answered yet.
func (g *Guard) isHanging(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	ended, hanging := g.hanging[key]
	if !hanging {
		return false
	}
	select {
	case <-ended:
		delete(g.hanging, key)
		return false
	default:
		return true
	}
}
