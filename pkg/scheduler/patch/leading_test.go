package patch

import (
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

func TestWhenLeading(t *testing.T) {
	asked, started := 0, 0
	s := &scheduler.Scheduler{NextPod: func(klog.Logger) (*framework.QueuedPodInfo, error) {
		if started == 0 {
			t.Error("a pod was asked for before the start was announced")
		}
		asked++
		return nil, nil
	}}
	internalsOf(s).whenLeading(func() { started++ })
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
