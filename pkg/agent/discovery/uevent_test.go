package discovery

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskEvent      = "add@/devices/x/block/sda\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=disk\x00"
	partitionEvent = "add@/devices/x/block/sda1\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=partition\x00"
)

// TestIsDiskEvent asserts that only events about whole block devices count.
func TestIsDiskEvent(t *testing.T) {
	for event, want := range map[string]bool{
		diskEvent:      true,
		partitionEvent: false,
		"add@/devices/net/eth0\x00ACTION=add\x00SUBSYSTEM=net\x00":              false,
		"bind@/devices/usb\x00ACTION=bind\x00SUBSYSTEM=usb\x00DEVTYPE=disk\x00": false,
		"": false,
	} {
		if got := isDiskEvent([]byte(event)); got != want {
			t.Errorf("isDiskEvent(%q) is %v", event, got)
		}
	}
}

// fakeUevents stands for the kernel's socket. A Read returns one event or one error.
type fakeUevents struct {
	events chan string
	errors chan error
	close  sync.Once
	closed chan struct{}
}

func (f *fakeUevents) Read(buffer []byte) (int, error) {
	select {
	case event := <-f.events:
		return copy(buffer, event), nil
	case err := <-f.errors:
		return 0, &os.PathError{Op: "read", Path: "uevents", Err: err}
	case <-f.closed:
		return 0, os.ErrClosed
	}
}

// Close may be called twice, as on a file.
func (f *fakeUevents) Close() error {
	f.close.Do(func() { close(f.closed) })
	return nil
}

// TestWatchUevents asserts that each burst of disk events causes one call, the first burst and the later ones, and that
// lost events cause one too. The end of the context ends the watch; any other error is returned.
func TestWatchUevents(t *testing.T) {
	advance := time.Sleep //nolint:forbidigo // The clock is that of synctest, and sleeping moves it on.
	for name, failure := range map[string]error{"context ends": nil, "socket fails": unix.EIO} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				socket := &fakeUevents{events: make(chan string), errors: make(chan error), closed: make(chan struct{})}
				var calls atomic.Int32
				ended := make(chan error, 1)
				go func() { ended <- watchUevents(ctx, socket, func() { calls.Add(1) }) }()

				expect := func(what string, want int32) {
					t.Helper()
					synctest.Wait()
					select {
					case err := <-ended:
						t.Fatalf("%s: the watch ended: %v", what, err)
					default:
					}
					if got := calls.Load(); got != want {
						t.Fatalf("%s: %d calls, want %d", what, got, want)
					}
				}
				socket.events <- diskEvent
				expect("first event", 0)
				advance(eventDelay * 3 / 4)
				socket.events <- diskEvent
				expect("second event of the burst", 0)
				advance(eventDelay / 4)
				expect("end of the first window", 1)
				advance(2 * eventDelay)
				expect("no further event", 1)

				socket.events <- diskEvent
				advance(eventDelay)
				expect("event after the first window", 2)

				socket.events <- partitionEvent
				advance(eventDelay)
				expect("event of a partition", 2)

				socket.errors <- unix.ENOBUFS
				advance(eventDelay)
				expect("overrun of the socket", 3)
				socket.events <- diskEvent
				advance(eventDelay)
				expect("event after the overrun", 4)

				if failure == nil {
					cancel()
				} else {
					socket.errors <- failure
				}
				synctest.Wait()
				select {
				case err := <-ended:
					if (err == nil) != (failure == nil) {
						t.Errorf("the watch ended with %v", err)
					}
				default:
					t.Fatal("the watch did not end")
				}
				select {
				case <-socket.closed:
				default:
					t.Error("the socket is open")
				}
			})
		})
	}
}
