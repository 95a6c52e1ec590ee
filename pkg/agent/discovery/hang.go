package discovery

import (
	"context"
	"fmt"
	"time"
)

// A disk that hangs returns neither data nor an error, and the thread that waits for it cannot be woken. The node must
// lose only that disk, and not the others.
const (
	// defaultTimeout is how long a rescan waits for one device: a disk may have to spin up.
	defaultTimeout = 15 * time.Second
	// maxInspections is how many devices are inspected at the same time.
	maxInspections = 16
)

// mediumKey identifies a device for as long as it holds the same medium.
func mediumKey(d Device) string { return d.Name + "/" + d.Number + "/" + d.Sequence }

// callWithTimeout calls ask, which may take for ever. When its time is up, ask goes on alone, and the device gets no
// further call before it has ended. Its result then goes to late, if that is set.
func callWithTimeout[T any](ctx context.Context, i *Inventory, d Device, ask func() (T, error), late func(T)) (T, error) {
	var none T
	key := mediumKey(d)
	if i.isHanging(key) {
		return none, errHangs(d)
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
	timer := time.NewTimer(i.options.DeviceTimeout)
	defer timer.Stop()
	select {
	case r := <-results:
		return r.value, r.err
	case <-timer.C:
	case <-ctx.Done():
	}
	i.mu.Lock()
	i.hanging[key] = ended
	i.mu.Unlock()
	close(givenUp)
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	return none, errHangs(d)
}

func errHangs(d Device) error {
	return fmt.Errorf("device %s hangs: it answers neither with data nor with an error; look at the kernel's log", d.Name)
}

// isHanging reports whether the device has not answered yet.
func (i *Inventory) isHanging(key string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	ended, hanging := i.hanging[key]
	if !hanging {
		return false
	}
	select {
	case <-ended:
		delete(i.hanging, key)
		return false
	default:
		return true
	}
}
