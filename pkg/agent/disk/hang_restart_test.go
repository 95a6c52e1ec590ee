package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// agentEnv makes this test program an agent with two disks, the first of which hangs.
const agentEnv = "BERTH_TEST_HUNG_AGENT"

// TestMain runs that agent in the processes that TestRestartBesideHungDisk starts.
func TestMain(m *testing.M) {
	paths, ok := os.LookupEnv(agentEnv)
	if !ok {
		os.Exit(m.Run())
	}
	if err := hungAgent(context.Background(), paths); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// hungAgent follows the commands on its standard input until that ends.
func hungAgent(ctx context.Context, paths string) error {
	bad, good, _ := strings.Cut(paths, " ")
	var disks []*Disk
	for _, path := range []string{bad, good} {
		d, err := Open(ctx, path, Options{CommandTimeout: time.Second})
		if err != nil {
			return err
		}
		disks = append(disks, d)
	}
	fmt.Println("open")
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadString('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case line == "ask\n":
			// This call never returns.
			go disks[0].Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 4)})
			err := await(ctx, 30*time.Second, func() (bool, error) { return disks[0].Snapshot().Err != nil, nil })
			fmt.Println("out of service:", err)
		case line == "close\n":
			fmt.Println(disks[1].Close())
		}
	}
}

// agentProcess is an agent in a process of its own.
type agentProcess struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	done chan struct{} // closed when the process has ended
}

func startAgent(t *testing.T, bad, good *loopDisk) *agentProcess {
	t.Helper()
	p := &agentProcess{t: t, cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), agentEnv+"="+bad.path+" "+good.path)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe: Wait would close it.
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.out = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // it is killed
		out.Close()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // unless the test did
	})
	p.expect("open")
	return p
}

func (p *agentProcess) send(line string) {
	p.t.Helper()
	if _, err := p.in.Write([]byte(line + "\n")); err != nil {
		p.t.Fatal(err)
	}
}

// expect reads the agent's output until it is the wanted line. It skips the watchdog's log.
func (p *agentProcess) expect(want string) {
	p.t.Helper()
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			p.t.Fatalf("the agent did not say %q: %v", want, err)
		}
		if strings.TrimSpace(line) == want {
			return
		}
	}
}

// state is the state of the process's first thread, Z if that has ended.
func (p *agentProcess) state() string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return "gone"
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return after[:1]
}

// newFrozenDisk makes a disk that hangs while the file system with its image is frozen.
func newFrozenDisk(t *testing.T) (*testenv.Freezer, *loopDisk) {
	t.Helper()
	f := testenv.NewFreezer(t, 128*units.MiB)
	image := filepath.Join(f.Dir, "image")
	testenv.ImageAt(t, image, 64*units.MiB)
	l := &loopDisk{image: image, path: testenv.Attach(t, image, "512")}
	l.removePartitions(t)
	t.Cleanup(func() {
		f.Thaw()
		l.removePartitions(t)
		testenv.Detach(t, l.path)
	})
	if _, err := Initialize(t.Context(), l.path, Owner{}); err != nil {
		t.Fatal(err)
	}
	return f, l
}

// TestRestartBesideHungDisk asserts how a disk that hangs affects the restart of an agent. An agent that stops in an
// orderly way closes its other disks, and the next agent opens them at once. One that is killed keeps them. Its process
// waits in the kernel, with all descriptors, until the disk answers.
func TestRestartBesideHungDisk(t *testing.T) {
	for name, orderly := range map[string]bool{"stopped": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			f, bad := newFrozenDisk(t)
			good := initialized(t, 64*units.MiB, 512)
			old := startAgent(t, bad, good)
			f.Freeze()
			old.send("ask")
			old.expect("out of service: <nil>")
			if orderly {
				old.send("close")
				old.expect("<nil>")
			}
			if err := old.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			// All threads end except the one that waits for the disk. If that is not the first, the first is a zombie.
			err := await(t.Context(), 10*time.Second, func() (bool, error) { state := old.state(); return state == "D" || state == "Z", nil })
			if err != nil {
				t.Fatalf("the killed agent is in state %s: %v", old.state(), err)
			}
			d, err := Open(t.Context(), good.path, Options{})
			switch {
			case orderly && err != nil:
				t.Errorf("Open of a disk that the old agent closed: %v", err)
			case !orderly && (!errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint("process ", old.cmd.Process.Pid))):
				t.Errorf("Open of a disk that a killed agent has: %v, want its process", err)
			}
			if err == nil {
				d.Close()
			}
			select {
			case <-old.done:
				t.Error("the killed agent ended while its disk hung: this test proves nothing")
			default:
			}
			f.Thaw()
			testenv.Receive(t, "the end of the killed agent, whose disk answers", old.done)
			if d, err = Open(t.Context(), good.path, Options{}); err != nil {
				t.Fatalf("Open after the disk has answered: %v", err)
			}
			d.Close()
		})
	}
}
