package main

import (
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// TestFlags: the command is kube-scheduler's, with our flags.
func TestFlags(t *testing.T) {
	ours, theirs := newCommand(), app.NewSchedulerCommand()
	if ours.Name() != theirs.Name() {
		t.Errorf("the command is %q, want %q", ours.Name(), theirs.Name())
	}
	more := map[string]bool{"publish-storage-capacity": true}
	theirs.Flags().VisitAll(func(f *pflag.Flag) {
		if have := ours.Flags().Lookup(f.Name); have == nil || have.DefValue != f.DefValue || have.Value.Type() != f.Value.Type() {
			t.Errorf("flag --%s is missing, or another", f.Name)
		}
	})
	ours.Flags().VisitAll(func(f *pflag.Flag) {
		if theirs.Flags().Lookup(f.Name) == nil && !more[f.Name] {
			t.Errorf("flag --%s is unknown to kube-scheduler", f.Name)
		}
	})
}

func TestWhenLeading(t *testing.T) {
	asked, started := 0, 0
	s := &scheduler.Scheduler{NextPod: func(klog.Logger) (*framework.QueuedPodInfo, error) {
		if started == 0 {
			t.Error("a pod was asked for before the start was told")
		}
		asked++
		return nil, nil
	}}
	whenLeading(s, func() { started++ })
	if started != 0 {
		t.Error("it was started before the scheduler leads")
	}
	for range 3 {
		if _, err := s.NextPod(klog.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if started != 1 || asked != 3 {
		t.Errorf("started %d times, asked for %d pods", started, asked)
	}
}
