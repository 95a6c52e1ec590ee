package disk

import (
	"context"
	"math"
	"sync"
	"time"
)

// rateLimit bounds the rate of zeroing. The zero limit is none.
type rateLimit struct {
	pacer *pacer
	rate  int64 // bytes a second, or 0
}

func (l rateLimit) isLimited() bool { return l.rate > 0 && l.pacer != nil }

// wait waits until that many more bytes may be zeroed or read.
func (l rateLimit) wait(ctx context.Context, n int64) error {
	if !l.isLimited() {
		return nil
	}
	return l.pacer.wait(ctx, n, l.rate)
}

// step is how much to do at a time, at most. With a limit it is a quarter of a second's worth: longer steps would come
// in bursts, which the limit prevents.
func (l rateLimit) step(most int64) int64 {
	if !l.isLimited() {
		return most
	}
	const stepsPerSecond = 4
	return min(most, max(alignDown(l.rate/stepsPerSecond), Alignment))
}

// pacer keeps all zeroing of a disk together within a rate.
type pacer struct {
	mu   sync.Mutex
	next time.Time // when the next byte may move
}

// wait reserves the time that n bytes take, and waits for its beginning.
func (p *pacer) wait(ctx context.Context, n, rate int64) error {
	p.mu.Lock()
	begin := time.Now()
	if begin.Before(p.next) {
		begin = p.next
	}
	// In floating point, because neither n in nanoseconds nor the result may fit into an int64.
	took := min(float64(n)/float64(rate)*float64(time.Second), float64(math.MaxInt64/2))
	p.next = begin.Add(time.Duration(took))
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(begin))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
