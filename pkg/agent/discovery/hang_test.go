package discovery

import (
	"strings"
	"testing"
	"time"
)

// TestCallWithTimeout asserts that a device that hangs is named, and gets no further call, and that the others do.
func TestCallWithTimeout(t *testing.T) {
	i := NewInventory(Options{DeviceTimeout: time.Millisecond})
	d, other := Device{Name: "sda", Number: "8:0"}, Device{Name: "sdb", Number: "8:16"}
	release := make(chan struct{})
	defer close(release)
	if _, err := callWithTimeout(t.Context(), i, d, func() (int, error) { <-release; return 1, nil }, nil); err == nil || !strings.Contains(err.Error(), "sda hangs") {
		t.Errorf("a device that hangs: %v", err)
	}
	asked := 0
	quick := func() (int, error) { asked++; return 2, nil }
	if _, err := callWithTimeout(t.Context(), i, d, quick, nil); err == nil || asked > 0 {
		t.Errorf("asked again: %v", err)
	}
	i.options.DeviceTimeout = time.Minute
	if v, err := callWithTimeout(t.Context(), i, other, quick, nil); v != 2 || err != nil {
		t.Errorf("another device: %v, %v", v, err)
	}
}
