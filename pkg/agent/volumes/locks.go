package volumes

import (
	"context"
	"sync"
)

// diskSemaphores bound how many operations run at the same time on each disk.
type diskSemaphores struct {
	mu     sync.Mutex
	byDisk map[string]chan struct{}
}

// acquire waits for one of the disk's slots. Without an error the caller must call leave.
func (s *diskSemaphores) acquire(ctx context.Context, disk string, limit int) (leave func(), err error) {
	s.mu.Lock()
	if s.byDisk == nil {
		s.byDisk = map[string]chan struct{}{}
	}
	slot := s.byDisk[disk]
	if slot == nil {
		slot = make(chan struct{}, limit)
		s.byDisk[disk] = slot
	}
	s.mu.Unlock()
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// locks are mutexes by name. Waiting for one ends with the context: the kubelet's calls have deadlines, and a wipe can
// take minutes.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	// token holds one element while the lock is free.
	token chan struct{}
	// users counts the holder and the waiters. At zero the lock is dropped.
	users int
}

// lock waits for the named lock. Without an error the caller must call unlock once.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[name]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		k.token <- struct{}{}
		l.held[name] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case <-k.token:
		return func() { k.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
