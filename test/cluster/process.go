package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a running part of the cluster.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// spawn starts a program in the background with its output in the log directory.
// A program that is started again goes on in the same file.
func (c *Cluster) spawn(name string, argv ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(c.LogDir(), name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	fmt.Fprintf(out, "# %s\n", strings.Join(argv, " "))
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = c.environment(name)
	// A session of its own, so that Ctrl-C in a terminal reaches only the owner, which
	// ends things in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// environment is the owner's, with the cluster's mark, without what would lead a
// client to another cluster.
func (c *Cluster) environment(component string) []string {
	env := c.state.Environment(component)
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "NODE_NAME", "NOTIFY_SOCKET":
		default:
			env = append(env, v)
		}
	}
	return env
}

// signal sends a signal unless the process has ended.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// stop asks the process to end and makes it after a while.
func (p *process) stop(patience time.Duration) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		return p.kill()
	}
}

// kill ends the process without giving it a chance to do anything.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// failure says why a process is of no use, with the end of its log.
func (p *process) failure(err error) error {
	return fmt.Errorf("%s: %w; the end of %s:\n%s", p.name, err, p.log, tail(p.log))
}

func tail(path string) []byte {
	const size = 3000
	f, err := os.Open(path)
	if err != nil {
		return []byte(err.Error())
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		if _, err := f.Seek(-size, io.SeekEnd); err != nil {
			return []byte(err.Error())
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(text)
}

// waitFor looks until the condition holds, the process it depends on ends, or
// patience does. Every look that fails says why, for the error.
func waitFor(caller context.Context, p *process, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(caller, patience)
	defer cancel()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.failure(fmt.Errorf("ended before it was ready: %w", errors.Join(p.err, err)))
		case <-ctx.Done():
			if caller.Err() != nil {
				return fmt.Errorf("wait for %s: %w", p.name, caller.Err())
			}
			return p.failure(fmt.Errorf("not ready after %s: %w", patience, err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
