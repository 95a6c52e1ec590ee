package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
)

const testPoll = time.Millisecond

// lockInBackground tries to lock, and returns a channel for the result.
func lockInBackground(ctx context.Context, path string) <-chan error {
	done := make(chan error, 1)
	go func() {
		l, err := lockNode(ctx, path, testPoll)
		if err == nil {
			err = l.release()
		}
		done <- err
	}()
	return done
}

// taken fails the test if another agent could take the lock.
func taken(t *testing.T, path string) {
	t.Helper()
	if free, err := (&nodeLock{path: path}).try(); err != nil || free {
		t.Fatalf("a second agent has the node: %v, %v", free, err)
	}
}

// TestSecondAgentWaits asserts that a second agent gets the lock only when the first has ended.
func TestSecondAgentWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin", lockName)
	first, err := lockNode(t.Context(), path, testPoll)
	if err != nil {
		t.Fatal(err)
	}
	taken(t, path)
	second := lockInBackground(t.Context(), path)
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	if err := testenv.Receive(t, "the second agent", second); err != nil {
		t.Error(err)
	}
}

// TestLockWaitEnds asserts that an agent that is stopped while it waits ends, without the lock.
func TestLockWaitEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), lockName)
	if _, err := lockNode(t.Context(), path, testPoll); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := lockNode(ctx, path, testPoll); !errors.Is(err, context.Canceled) || l != nil {
		t.Errorf("got %v, %v", l, err)
	}
}

// TestLockFileRemoved asserts that the holder makes a removed file again, so that another agent
// still waits.
func TestLockFileRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin", lockName)
	l, err := lockNode(t.Context(), path, testPoll)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := l.restoreFile(t.Context()); err != nil {
		t.Fatal(err)
	}
	taken(t, path)
	second := lockInBackground(t.Context(), path)
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	if err := testenv.Receive(t, "the second agent", second); err != nil {
		t.Error(err)
	}
}

// TestLockTaken asserts that the holder ends when its file was removed and another agent has the new one.
func TestLockTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), lockName)
	l, err := lockNode(t.Context(), path, testPoll)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := lockNode(t.Context(), path, testPoll)
	if err != nil {
		t.Fatal(err)
	}
	kept := make(chan error, 1)
	go func() { kept <- l.keepFile(t.Context()) }()
	if err := testenv.Receive(t, "the end of the holder", kept); err == nil {
		t.Error("the holder goes on beside the other")
	}
	if err := errors.Join(other.release(), l.release()); err != nil {
		t.Error(err)
	}
}
