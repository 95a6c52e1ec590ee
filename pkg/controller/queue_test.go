package controller

import (
	"context"
	"errors"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berthdev/berth/test/testenv"
)

// TestWork asserts that a key that failed or that asks for another look is synced again, each with
// a deadline, and that Work ends with the queue.
func TestWork(t *testing.T) {
	queue := NewQueue("", time.Millisecond)
	synced := make(chan string, 10)
	answers := []struct {
		again time.Duration
		err   error
	}{
		{0, errors.New("unavailable")},
		{0, apierrors.NewConflict(schema.GroupResource{}, "a", nil)},
		{time.Millisecond, nil},
		{0, nil},
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Work(t.Context(), queue, "node", func(ctx context.Context, key string) (time.Duration, error) {
			if _, limited := ctx.Deadline(); !limited {
				t.Error("a sync has no time limit")
			}
			answer := answers[0]
			answers = answers[1:]
			synced <- key
			if len(answers) == 0 {
				queue.ShutDown()
			}
			return answer.again, answer.err
		})
	}()
	queue.Add("a")
	testenv.Receive(t, "the end of Work", ended)
	if len(synced) != 4 {
		t.Errorf("synced %d times, want 4", len(synced))
	}
	if n := queue.NumRequeues("a"); n != 0 {
		t.Errorf("%d failures are remembered after a success, want none", n)
	}
}
