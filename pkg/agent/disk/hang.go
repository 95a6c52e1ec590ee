package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// A disk that hangs answers neither with data nor with an error, and the thread that asked it
// cannot be woken. The owner waits with its command. All that can be done is to report it, and to
// refuse further commands.

// defaultPatience is how long a command may take. The kernel itself gives most disks 30
// seconds for a request before it resets them.
const defaultPatience = 30 * time.Second

// watchdog notices that the owner does not come back from a disk.
type watchdog struct {
	patience time.Duration
	// expired is closed when a command has taken too long; why is set before. The disk
	// remains out of service when it answers again, as after every doubt, until it is
	// opened, and so read, again.
	expired chan struct{}
	why     error
	// publishing is held while a snapshot is made public, but never over I/O: so the owner's
	// last one before it hung does not come after the one that says that it hangs.
	publishing sync.Mutex
	snapshot   atomic.Pointer[Snapshot]
}

func newWatchdog(patience time.Duration) *watchdog {
	if patience == 0 {
		patience = defaultPatience
	}
	return &watchdog{patience: patience, expired: make(chan struct{})}
}

// watch does what the owner has to do, and takes the disk out of service meanwhile if that
// takes too long.
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

// expire is called in a goroutine of its own, while the owner waits for the disk.
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

// show makes the owner's snapshot public.
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

// askMeanwhile has the owner look at the table now and then, until stop is called: a caller
// that zeroes for long would else be the only one who knows that the disk hangs.
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
				// Whatever it finds, it is the disk's state from then on.
				_ = d.Check(context.Background())
			}
		}
	}()
	return sync.OnceFunc(func() { close(stopped) })
}
