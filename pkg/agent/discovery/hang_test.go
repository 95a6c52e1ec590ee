package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
)

// TestCallWithTimeout asserts that a device that does not answer in time gets no further call until it has answered.
// The late answer is not lost.
func TestCallWithTimeout(t *testing.T) {
	i := NewInventory(Options{DeviceTimeout: time.Millisecond})
	d, other := Device{Name: "sda", Number: "8:0"}, Device{Name: "sdb", Number: "8:16"}
	release, late := make(chan struct{}), make(chan int, 1)
	hang := func() (int, error) { <-release; return 1, nil }
	if _, err := callWithTimeout(t.Context(), i, d, hang, func(v int) { late <- v }); err == nil || !strings.Contains(err.Error(), "sda hangs") {
		t.Errorf("a device that hangs: %v", err)
	}
	asked := false
	quick := func() (int, error) { asked = true; return 2, errors.New("said") }
	if _, err := callWithTimeout(t.Context(), i, d, quick, nil); err == nil || !strings.Contains(err.Error(), "hangs") || asked {
		t.Errorf("asked again: %v, %v", asked, err)
	}
	i.options.DeviceTimeout = time.Minute
	if v, err := callWithTimeout(t.Context(), i, other, quick, nil); v != 2 || err == nil || err.Error() != "said" {
		t.Errorf("another device: %v, %v", v, err)
	}
	close(release)
	if v := testenv.Receive(t, "the late answer", late); v != 1 {
		t.Errorf("late is %d", v)
	}
	testenv.Receive(t, "the end of the call that hung", i.hanging[mediumKey(d)])
	if v, _ := callWithTimeout(t.Context(), i, d, quick, nil); v != 2 {
		t.Errorf("a device that answers again says %v", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	release = make(chan struct{})
	defer close(release)
	if _, err := callWithTimeout(ctx, i, other, hang, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
