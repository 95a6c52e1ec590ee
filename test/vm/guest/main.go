//go:build linux

// Command guest is the first and only program of a virtual machine. It loads modules, and then executes the commands
// that arrive over the virtio port. See package wire.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/test/vm/wire"
)

func main() {
	err := start()
	if err == nil {
		err = serve()
	}
	fmt.Println("guest:", err)
	// The first program must not end: the kernel would panic before the log is read.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// start makes the machine usable.
func start() error {
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	for _, m := range []struct{ fs, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(modules)
	for _, path := range modules {
		if err := load(path); err != nil {
			return fmt.Errorf("loading %s: %w", path, err)
		}
	}
	return startLoopback()
}

// startLoopback switches on the network interface lo: the tests of the agent talk to an API server.
func startLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("switching on lo: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("switching on lo: %w", err)
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// port is the connection to the test.
type port struct {
	mu  sync.Mutex
	out io.Writer
}

func (p *port) send(r wire.Reply) {
	line, err := json.Marshal(r)
	if err != nil {
		panic(err) // all that is sent is made here
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.out.Write(append(line, '\n')); err != nil {
		fmt.Println("guest: reply lost:", err)
	}
}

// serve executes commands until the power is cut.
func serve() error {
	f, err := openPort()
	if err != nil {
		return err
	}
	p := &port{out: f}
	g := newGuest()
	lines := bufio.NewReader(f)
	var line []byte
	for {
		part, err := lines.ReadBytes('\n')
		line = append(line, part...)
		if errors.Is(err, io.EOF) {
			// The other side has not connected yet.
			<-time.After(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var r wire.Request
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("request %q: %w", line, err)
		}
		line = nil
		go func() {
			event := func(v any) { p.send(reply(r.ID, v, nil)) }
			result, err := g.do(context.Background(), r, event)
			last := reply(r.ID, result, err)
			last.Done = true
			p.send(last)
		}()
	}
}

func reply(id int, v any, err error) wire.Reply {
	r := wire.Reply{ID: id}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	if r.Result, err = json.Marshal(v); err != nil {
		r.Error = err.Error()
	}
	return r
}

// openPort waits for the port, which its driver, now loaded, must find.
func openPort() (*os.File, error) {
	for range 3000 {
		f, err := os.OpenFile("/dev/vport0p1", os.O_RDWR, 0)
		if err == nil {
			return f, nil
		}
		if found, _ := filepath.Glob("/dev/vport*"); len(found) > 0 {
			return os.OpenFile(found[0], os.O_RDWR, 0)
		}
		<-time.After(10 * time.Millisecond)
	}
	return nil, errors.New("there is no virtio port")
}
