package hang

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
)

// TestCall asserts that a device that does not answer in time gets no further call until it has answered. The late
// answer is not lost.
func TestCall(t *testing.T) {
	var g Guard
	release, late := make(chan struct{}), make(chan int, 1)
	hang := func() (int, error) { <-release; return 1, nil }
	if _, err := Call(t.Context(), &g, "sda", time.Millisecond, hang, func(v int) { late <- v }); !errors.Is(err, ErrHangs) {
		t.Errorf("a device that hangs: %v", err)
	}
	asked := false
	quick := func() (int, error) { asked = true; return 2, errors.New("said") }
	if _, err := Call(t.Context(), &g, "sda", time.Minute, quick, nil); !errors.Is(err, ErrHangs) || asked {
		t.Errorf("asked again: %v, %v", asked, err)
	}
	if v, err := Call(t.Context(), &g, "sdb", time.Minute, quick, nil); v != 2 || err == nil || err.Error() != "said" {
		t.Errorf("another device: %v, %v", v, err)
	}
	close(release)
	if v := testenv.Receive(t, "the late answer", late); v != 1 {
		t.Errorf("late is %d", v)
	}
	testenv.Receive(t, "the end of the call that hung", g.hanging["sda"])
	if v, _ := Call(t.Context(), &g, "sda", time.Minute, quick, nil); v != 2 {
		t.Errorf("a device that answers again says %v", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	release = make(chan struct{})
	defer close(release)
	if _, err := Call(ctx, &g, "sdb", time.Minute, hang, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
