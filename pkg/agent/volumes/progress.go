package volumes

import (
	"sync"
	"time"
)

// progressEvery is how often the progress of wipes or moves is published. The published figures of all of them change
// together and only then. Each publication comes back on the watch, and would cause the next one if the figures always
// differed.
const progressEvery = 3 * time.Second

// progress is how far work on a volume is: done of length bytes. published is the published number.
type progress struct{ length, done, published int64 }

// progressBoard has the progress of all wipes, or of all moves, by the volume's partition.
type progressBoard struct {
	node *node

	mu      sync.Mutex
	running map[string]*progress
	// publishedAt is when the figures were last published.
	publishedAt time.Time
}

func newProgressBoard(n *node) *progressBoard {
	return &progressBoard{node: n, running: map[string]*progress{}}
}

func (b *progressBoard) begin(partition string, length int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running[partition] = &progress{length: length}
}

func (b *progressBoard) end(partition string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, partition)
}

// of returns the progress of the work on a volume; zero if there is none.
func (b *progressBoard) of(partition string) progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.running[partition]; p != nil {
		return *p
	}
	return progress{}
}

// set records how many bytes of a volume are done.
func (b *progressBoard) set(partition string, done int64) {
	if b.record(partition, done) {
		b.node.changed()
	}
}

// record is set without the publication, and reports whether that is due.
func (b *progressBoard) record(partition string, done int64) (due bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.running[partition]
	if p == nil {
		return false
	}
	p.done = min(done, p.length)
	if b.node.since(b.publishedAt) < progressEvery {
		return false
	}
	b.publishedAt = b.node.clock.Now()
	for _, p := range b.running {
		p.published = p.done
	}
	return true
}
