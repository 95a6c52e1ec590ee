package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

const (
	// lockName is the lock file's name, beside the CSI socket.
	lockName = "agent.lock"
	// lockPoll is how often a waiting agent tries the lock, and the holder checks for its file.
	lockPoll = time.Second
)

// nodeLock ensures that one agent at a time serves the node. It is an flock on a file in a folder of the host, so it
// works across containers, and ends with the process.
type nodeLock struct {
	path string
	poll time.Duration
	file *os.File
}

// lockNode waits until this agent is the only one of the node, or the context ends. Until then the agent must touch
// neither the disks, nor the sockets, nor the NodeDiskCapacity.
func lockNode(ctx context.Context, path string, poll time.Duration) (*nodeLock, error) {
	l := &nodeLock{path: path, poll: poll}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the agent's lock: %w", err)
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for logged := false; ; {
		free, err := l.try()
		if err != nil {
			return nil, err
		}
		if free {
			return l, nil
		}
		if !logged {
			logged = true
			klog.FromContext(ctx).Info("Another agent serves this node; waiting until it ends. If there is to be only one, look for a second DaemonSet or a program that holds the lock", "lock", path)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}

// try takes the lock if it is free. A lock on a file that is not at the path any more does not count.
func (l *nodeLock) try() (bool, error) {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fmt.Errorf("cannot open the agent's lock: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return false, file.Close()
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("cannot lock %s: %w", l.path, err), file.Close())
	}
	l.file = file
	here, err := l.holdsFile()
	if err != nil || !here {
		return false, errors.Join(err, l.release())
	}
	return true, nil
}

// holdsFile reports whether the locked file is the one at the path.
func (l *nodeLock) holdsFile() (bool, error) {
	mine, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("cannot look at the agent's lock: %w", err)
	}
	now, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at the agent's lock: %w", err)
	}
	return os.SameFile(mine, now), nil
}

// keepFile makes the file again if it is removed, until the context ends. It fails if another agent was faster: that
// one has the node.
func (l *nodeLock) keepFile(ctx context.Context) error {
	ticker := time.NewTicker(l.poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := l.restoreFile(ctx); err != nil {
			return err
		}
	}
}

// restoreFile makes the file again if it does not exist. The error says that another agent has it.
func (l *nodeLock) restoreFile(ctx context.Context) error {
	if here, err := l.holdsFile(); err != nil || here {
		return nil //nolint:nilerr // checked again soon; the lock itself is not lost
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o750); err != nil {
		return nil //nolint:nilerr // as above
	}
	next := &nodeLock{path: l.path}
	free, err := next.try()
	if err != nil {
		klog.FromContext(ctx).Error(err, "The agent's lock was removed and cannot be made again")
		return nil
	}
	if !free {
		return fmt.Errorf("the lock %s was removed, and another agent has taken it: this one ends", l.path)
	}
	klog.FromContext(ctx).Info("The agent's lock was removed and is made again", "lock", l.path)
	err = l.release()
	l.file = next.file
	return err
}

// release allows the next agent to take the node.
func (l *nodeLock) release() error {
	if l == nil || l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}
