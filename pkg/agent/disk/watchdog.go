package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// A disk that hangs returns neither data nor an error, and the thread that waits for it cannot be woken. The worker
// waits with its command. This file reports that, and has further commands refused.

// defaultTimeout is how long a command may take. The kernel itself gives most disks 30
// seconds for a request before it resets them.
const defaultTimeout = 30 * time.Second

// watchdog notices that a command of the worker takes too long.
type watchdog struct {
	timeout time.Duration
	// expired is closed when a command has taken too long. reason is set before. When the disk answers again it stays out
	// of service, as after every doubt, until it is opened and so read again.
	expired chan struct{}
	reason  error
	// publishing is held while a snapshot is published, but never during I/O. So the worker's last snapshot before it
	// hung cannot replace the one that says that it hangs.
	publishing sync.Mutex
	snapshot   atomic.Pointer[Snapshot]
}

func newWatchdog(timeout time.Duration) *watchdog {
	if timeout == 0 {
		timeout = defaultTimeout
	}
	return &watchdog{timeout: timeout, expired: make(chan struct{})}
}

// runWithWatchdog runs an operation of the worker. If it takes too long, the disk is out of service before the
// operation ends.
func (d *Disk) runWithWatchdog(ctx context.Context, do func() error) error {
	timer := time.AfterFunc(d.watchdog.timeout, func() { d.onTimeout(ctx) })
	err := do()
	if !timer.Stop() {
		<-d.watchdog.expired
		if d.failure == nil {
			d.fail(ctx, fmt.Errorf("%w; it has answered since, and is to be opened again", d.watchdog.reason))
		}
	}
	return err
}

// onTimeout runs in its own goroutine, while the worker waits for the disk.
func (d *Disk) onTimeout(ctx context.Context) {
	w := d.watchdog
	select {
	case <-w.expired:
		return
	default:
	}
	w.reason = fmt.Errorf("%w: the disk hangs: it has not done in %s what it was asked, nor failed; look at the kernel's log", ErrOutOfService, w.timeout)
	klog.FromContext(ctx).Error(w.reason, "Disk is out of service", "device", d.device.path)
	w.publishing.Lock()
	s := *w.snapshot.Load()
	if s.Err == nil {
		s.Err = w.reason
	}
	w.snapshot.Store(&s)
	close(w.expired)
	w.publishing.Unlock()
	if d.onChange != nil {
		d.onChange()
	}
}

// publish publishes the worker's snapshot.
func (w *watchdog) publish(s *Snapshot) {
	w.publishing.Lock()
	defer w.publishing.Unlock()
	select {
	case <-w.expired:
		if s.Err == nil {
			s.Err = w.reason
		}
	default:
	}
	w.snapshot.Store(s)
}

// checkPeriodically has the worker read the table from time to time, until stop is called. Otherwise a hang would be
// noticed only by a caller that zeroes for long.
func (d *Disk) checkPeriodically() (stop func()) {
	ticker, stopped := time.NewTicker(d.watchdog.timeout), make(chan struct{})
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
