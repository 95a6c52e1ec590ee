package kubectl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// drawPause is between two drawings at least, however often something changes.
const drawPause = 250 * time.Millisecond

// perhapsWatch runs the command once. With watching it runs again after each change of a NodeDiskCapacity, until the
// user ends it.
func (s *session) perhapsWatch(ctx context.Context, a *api, watching bool, run func(context.Context, io.Writer) error) error {
	if !watching {
		return run(ctx, s.Out)
	}
	to, err := s.terminal()
	if err != nil {
		return err
	}
	changes, err := a.changes(ctx)
	if err != nil {
		return err
	}
	defer changes.Stop()
	for first := true; ; first = false {
		// The whole text is written at once, so that a terminal does not flicker.
		var text bytes.Buffer
		switch {
		case to.Limited:
			text.WriteString("\x1b[H\x1b[2J")
		case !first:
			text.WriteString("\n")
		}
		if err := run(ctx, &text); err != nil && !errors.Is(err, errNeedsOperator) {
			return err
		}
		if _, err := s.Out.Write(text.Bytes()); err != nil {
			return err
		}
		if err := awaitChange(ctx, changes.ResultChan()); err != nil {
			return err
		}
	}
}

// awaitChange returns after an event, and after those that come within drawPause.
func awaitChange(ctx context.Context, events <-chan watch.Event) error {
	var pause <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause:
			return nil
		case event, ok := <-events:
			if !ok {
				return errors.New("the watch of NodeDiskCapacities has ended")
			}
			if event.Type == watch.Bookmark {
				continue
			}
			if pause == nil {
				pause = time.After(drawPause)
			}
		}
	}
}

// changes watches all NodeDiskCapacities from now on.
func (a *api) changes(ctx context.Context) (watch.Interface, error) { return a.changesOf(ctx, "") }

// changesOf watches the NodeDiskCapacities of a field selector from now on. The watch resumes by itself.
func (a *api) changesOf(ctx context.Context, selector string) (watch.Interface, error) {
	var list diskv1alpha1.NodeDiskCapacityList
	if err := a.berth.Get().Resource(capacities).VersionedParams(&metav1.ListOptions{Limit: 1, FieldSelector: selector}, metav1.ParameterCodec).Do(ctx).Into(&list); err != nil {
		return nil, wrapList("NodeDiskCapacities", err)
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return nil, errors.New("not listed")
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch, options.FieldSelector = true, selector
			return a.berth.Get().Resource(capacities).VersionedParams(&options, metav1.ParameterCodec).Watch(ctx)
		},
	}
	changes, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, lw)
	if err != nil {
		return nil, fmt.Errorf("watching NodeDiskCapacities: %w", err)
	}
	return changes, nil
}
