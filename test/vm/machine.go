package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berthdev/berth/test/vm/wire"
)

// image is what a machine boots from.
type image struct{ kernel, initramfs string }

// drive is a disk of a machine. Its name is the serial number, and the ID with which it is unplugged.
type drive struct {
	name   string
	socket string // where it is served
	sector int64
	// wwn makes it a SCSI disk. Several with one wwn are paths to one disk.
	wwn uint64
}

// backend is what qemu keeps when the disk is unplugged, frontend what the guest sees.
func (d drive) backend() string {
	return mustJSON(map[string]any{
		"driver": "raw", "node-name": "drive-" + d.name, "discard": "unmap",
		"file": map[string]any{"driver": "nbd", "discard": "unmap", "server": map[string]string{"type": "unix", "path": d.socket}},
	})
}

func (d drive) frontend() map[string]any {
	if d.wwn != 0 {
		return map[string]any{
			"driver": "scsi-hd", "bus": "scsi.0", "id": d.name, "serial": d.name, "drive": "drive-" + d.name, "write-cache": "on",
			"wwn": d.wwn, "logical_block_size": d.sector, "physical_block_size": d.sector,
		}
	}
	return map[string]any{
		"driver": "virtio-blk-pci", "id": d.name, "serial": d.name, "drive": "drive-" + d.name, "write-cache": "on",
		"logical_block_size": d.sector, "physical_block_size": d.sector,
	}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // all of it is written here
	}
	return string(b)
}

// machine is a virtual machine that runs, or ran.
type machine struct {
	dir     string
	qemu    *exec.Cmd
	exited  chan struct{} // closed when qemu has ended
	monitor *monitor
	port    net.Conn

	mu      sync.Mutex
	next    int
	waiting map[int]chan wire.Reply
	lost    error // why no more replies come
}

// bootPatience is how long the boot of a machine may take. Software emulation on a busy machine is slow.
const bootPatience = 3 * time.Minute

// boot starts a machine and waits until its guest answers.
func boot(ctx context.Context, dir string, i image, drives ...drive) (*machine, error) {
	m := &machine{dir: dir, exited: make(chan struct{}), waiting: map[int]chan wire.Reply{}}
	// Sockets of an earlier boot would be mistaken for new ones.
	for _, name := range []string{"port", "qmp"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	log, err := os.OpenFile(m.consolePath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m.qemu = exec.Command("qemu-system-x86_64", m.arguments(i, drives)...)
	m.qemu.Stdout, m.qemu.Stderr = log, log
	// It must end with the test, also if the test is killed.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.qemu.Start(); err != nil {
		return nil, fmt.Errorf("starting the virtual machine: %w", err)
	}
	go func() {
		_ = m.qemu.Wait() // usually it is killed
		close(m.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	if err := m.greet(ctx); err != nil {
		m.cut()
		return nil, fmt.Errorf("booting the virtual machine, see %s: %w", m.consolePath(), err)
	}
	return m, nil
}

func (m *machine) consolePath() string { return filepath.Join(m.dir, "console.log") }

// commandLine is the kernel's. With its default, the kernel measures whether the emulated timer works. On a busy
// machine that fails, and the kernel hangs.
const commandLine = "console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check rdinit=/init"

func (m *machine) arguments(i image, drives []drive) []string {
	args := []string{
		"-nodefaults", "-display", "none", "-no-reboot", "-machine", "pc", "-accel", "tcg,thread=multi",
		"-smp", "2", "-m", "1024",
		"-kernel", i.kernel, "-initrd", i.initramfs,
		"-append", commandLine,
		"-serial", "stdio",
		"-qmp", "unix:" + filepath.Join(m.dir, "qmp") + ",server=on,wait=off",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,server=on,wait=off,path=" + filepath.Join(m.dir, "port"),
		"-device", "virtserialport,chardev=port",
		"-device", "virtio-scsi-pci,id=scsi",
	}
	for _, d := range drives {
		args = append(args, "-blockdev", d.backend(), "-device", mustJSON(d.frontend()))
	}
	return args
}

// greet connects to the machine and waits until the guest answers.
func (m *machine) greet(ctx context.Context) error {
	var err error
	if m.port, err = m.dial(ctx, "port"); err != nil {
		return err
	}
	conn, err := m.dial(ctx, "qmp")
	if err != nil {
		return err
	}
	if m.monitor, err = newMonitor(conn); err != nil {
		return err
	}
	go m.receive()
	return m.call(ctx, "hello", nil, nil)
}

// dial connects to a socket as soon as qemu has made it.
func (m *machine) dial(ctx context.Context, name string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", filepath.Join(m.dir, name))
		if err == nil {
			return conn, nil
		}
		select {
		case <-m.exited:
			return nil, errors.New("qemu ended")
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// receive passes on replies until the machine is gone.
func (m *machine) receive() {
	lines := bufio.NewReader(m.port)
	for {
		line, err := lines.ReadBytes('\n')
		var r wire.Reply
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		m.mu.Lock()
		if err != nil {
			m.lost = fmt.Errorf("the machine does not answer any more: %w", err)
			for _, replies := range m.waiting {
				close(replies)
			}
			m.mu.Unlock()
			return
		}
		replies := m.waiting[r.ID]
		if r.Done {
			delete(m.waiting, r.ID)
		}
		m.mu.Unlock()
		if replies == nil {
			continue
		}
		replies <- r
		if r.Done {
			close(replies)
		}
	}
}

// errRefused says that the guest's command failed.
var errRefused = errors.New("in the machine")

// call has the guest execute a command and waits until it is done.
func (m *machine) call(ctx context.Context, do string, args, result any) error {
	replies, err := m.begin(do, args)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", do, ctx.Err())
		case <-m.exited:
			return fmt.Errorf("%s: the machine ended", do)
		case r, ok := <-replies:
			switch {
			case !ok:
				return fmt.Errorf("%s: %w", do, m.lost)
			case !r.Done:
			case r.Error != "":
				return fmt.Errorf("%s: %w: %s", do, errRefused, r.Error)
			case result != nil:
				return json.Unmarshal(r.Result, result)
			default:
				return nil
			}
		}
	}
}

// begin has the guest execute a command. The channel is closed after the last reply, and when the machine is gone.
func (m *machine) begin(do string, args any) (<-chan wire.Reply, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	// Nothing may block the reader: every reply must find room.
	replies := make(chan wire.Reply, 1<<16)
	m.mu.Lock()
	m.next++
	r := wire.Request{ID: m.next, Do: do, Args: raw}
	m.waiting[r.ID] = replies
	line, err := json.Marshal(r)
	if err == nil {
		err = m.lost
	}
	if err == nil {
		_, err = m.port.Write(append(line, '\n'))
	}
	m.mu.Unlock()
	return replies, err
}

// cut cuts the power: it kills qemu at any moment.
func (m *machine) cut() {
	_ = m.qemu.Process.Kill() // unless it has ended
	<-m.exited
	if m.port != nil {
		m.port.Close()
	}
	if m.monitor != nil {
		m.monitor.conn.Close()
	}
}
