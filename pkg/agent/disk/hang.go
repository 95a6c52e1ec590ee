package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// A disk that hangs returns neither data nor an error, and the thread that waits for it cannot be woken. The owner
// waits with its command. This file reports that, and has further commands refused.

// defaultPatience is how long a command may take. The kernel itself gives most disks 30
// seconds for a request before it resets them.
const defaultPatience = 30 * time.Second

// watchdog notices that a command of the owner takes too long.
type watchdog struct {
	patience time.Duration
	// expired is closed when a command has taken too long. why is set before. When the disk answers again it stays out
	// of service, as after every doubt, until it is opened and so read again.
	expired chan struct{}
	why     error
	// publishing is held while a snapshot is published, but never during I/O. So the owner's last snapshot before it
	// hung cannot replace the one that says that it hangs.
	publishing sync.Mutex
	snapshot   atomic.Pointer[Snapshot]
}

func newWatchdog(patience time.Duration) *watchdog {
	if patience == 0 {
		patience = defaultPatience
	}
	return &watchdog{patience: patience, expired: make(chan struct{})}
}

// watch runs an operation of the owner. If it takes too long, the disk is out of service before the operation ends.
func (d *Disk) watch(ctx context.Context, do func() error) error {
	timer := time.AfterFunc(d.watchdog.patience, func() { d.expire(ctx) })
	err := do()
	if !timer.Stop() {
		<-d.watchdog.expired
		if d.failure == nil {
			d.fail(ctx, fmt.Errorf("%w; it has answered since, and is to be opened again", d.watchdog.why))
		}
	}
	return err
}

// expire runs in its own goroutine, while the owner waits for the disk.
func (d *Disk) expire(ctx context.Context) {
	w := d.watchdog
	select {
	case <-w.expired:
		return
	default:
	}
	w.why = fmt.Errorf("%w: the disk hangs: it has not done in %s what it was asked, nor failed; look at the kernel's log", ErrOutOfService, w.patience)
	klog.FromContext(ctx).Error(w.why, "Disk is out of service", "device", d.device.path)
	w.publishing.Lock()
	s := *w.snapshot.Load()
	if s.Err == nil {
		s.Err = w.why
	}
	w.snapshot.Store(&s)
	close(w.expired)
	w.publishing.Unlock()
	if d.onChange != nil {
		d.onChange()
	}
}

// show publishes the owner's snapshot.
func (w *watchdog) show(s *Snapshot) {
	w.publishing.Lock()
	defer w.publishing.Unlock()
	select {
	case <-w.expired:
		if s.Err == nil {
			s.Err = w.why
		}
	default:
	}
	w.snapshot.Store(s)
}

// askMeanwhile has the owner read the table from time to time, until stop is called. Otherwise a hang would be noticed
// only by a caller that zeroes for long.
func (d *Disk) askMeanwhile() (stop func()) {
	ticker, stopped := time.NewTicker(d.watchdog.patience), make(chan struct{})
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-d.stop:
				return
			case <-ticker.C:
				// Check takes the disk out of service if it fails.
				_ = d.Check(context.Background())
			}
		}
	}()
	return sync.OnceFunc(func() { close(stopped) })
}
