package discovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthdev/berth/pkg/agent/hang"
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

// callWithTimeout is hang.Call about a device of the inventory.
func callWithTimeout[T any](ctx context.Context, i *Inventory, d Device, ask func() (T, error), late func(T)) (T, error) {
	value, err := hang.Call(ctx, &i.hanging, mediumKey(d), i.options.DeviceTimeout, ask, late)
	if errors.Is(err, hang.ErrHangs) {
		return value, fmt.Errorf("device %s hangs: it answers neither with data nor with an error; look at the kernel's log", d.Name)
	}
	return value, err
}
