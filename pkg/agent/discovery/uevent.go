package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// eventDelay is how long a rescan waits for more events: plugging in one disk causes a burst of events.
const eventDelay = 200 * time.Millisecond

// WatchDevices calls changed after whole block devices appeared, disappeared or changed, until the context ends. It
// listens to the kernel, so that an idle node costs nothing.
func WatchDevices(ctx context.Context, changed func()) error {
	socket, err := openUevents()
	if err != nil {
		return fmt.Errorf("cannot listen for block devices of the kernel: %w", err)
	}
	return watchUevents(ctx, socket, changed)
}

// watchUevents is WatchDevices with an open socket. Each Read returns one event. It closes the socket.
func watchUevents(ctx context.Context, socket io.ReadCloser, changed func()) error {
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	defer func() { _ = socket.Close() }()

	// An event does not restart the timer: a device that sends events all the time would hide all others.
	var waiting atomic.Bool
	timer := time.AfterFunc(time.Hour, func() { waiting.Store(false); changed() })
	timer.Stop()
	defer timer.Stop()
	rescan := func() {
		if !waiting.Swap(true) {
			timer.Reset(eventDelay)
		}
	}
	buffer := make([]byte, 16<<10)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// Events were lost. A scan finds out which.
			rescan()
		case err != nil:
			return fmt.Errorf("cannot read the kernel's device events: %w", err)
		case isDiskEvent(buffer[:n]):
			rescan()
		}
	}
}

// openUevents opens the socket for the kernel's device events. It is non-blocking, so that Go's poller waits on it and
// Close ends a Read.
func openUevents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	// Group 1 is the kernel itself. Group 2 is udev.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "uevents"), nil
}

// isDiskEvent reports whether the event is about a whole block device. Events about partitions are caused by this
// agent.
func isDiskEvent(event []byte) bool {
	var block, disk bool
	for field := range bytes.SplitSeq(event, []byte{0}) {
		switch string(field) {
		case "SUBSYSTEM=block":
			block = true
		case "DEVTYPE=disk":
			disk = true
		}
	}
	return block && disk
}
