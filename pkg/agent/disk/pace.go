package disk

import (
	"context"
	"math"
	"sync"
	"time"
)

// effort is how zeroing goes about it: how fast, and whom it tells how far it is. The zero
// effort has no limit and tells nobody.
type effort struct {
	pace     *pace
	rate     int64 // bytes a second, or 0
	progress func(done int64)
}

// wait waits until so many bytes more may be written or read.
func (by effort) wait(ctx context.Context, n int64) error {
	if by.rate <= 0 || by.pace == nil {
		return nil
	}
	return by.pace.wait(ctx, n, by.rate)
}

// step is how much to do at a time at most: with a limit no more than a moment's worth, or it
// would come in bursts that the limit is there to prevent.
func (by effort) step(most int64) int64 {
	if by.rate <= 0 || by.pace == nil {
		return most
	}
	const momentsPerSecond = 4
	return min(most, max(alignDown(by.rate/momentsPerSecond), Alignment))
}

func (by effort) tell(done int64) {
	if by.progress != nil {
		by.progress(done)
	}
}

// half is the effort of one of two ways over an extent, when before bytes were done before.
func (by effort) half(before int64) effort {
	if tell := by.progress; tell != nil {
		by.progress = func(done int64) { tell((before + done) / 2) }
	}
	return by
}

// pace keeps all zeroing of a disk together within a rate.
type pace struct {
	mu   sync.Mutex
	next time.Time // when the next byte may move
}

// wait takes its turn for n bytes and waits for it.
func (p *pace) wait(ctx context.Context, n, rate int64) error {
	p.mu.Lock()
	turn := time.Now()
	if turn.Before(p.next) {
		turn = p.next
	}
	// In floating point, as n times a second's nanoseconds may not fit; nor may the result.
	took := min(float64(n)/float64(rate)*float64(time.Second), float64(math.MaxInt64/2))
	p.next = turn.Add(time.Duration(took))
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(turn))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
