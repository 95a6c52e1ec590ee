package volumebinding

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	stock "k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
)

// delegatedPlugin is a plugin for a pod whose claim DiskCapacity decides about. Its stock binder panics when it is
// called.
func delegatedPlugin(b *bench) *Plugin {
	return &Plugin{
		VolumeBinding: &stock.VolumeBinding{Binder: b.binder}, binder: b.binder,
		delegatedClaims: func(fwk.CycleState) []*corev1.PersistentVolumeClaim {
			return []*corev1.PersistentVolumeClaim{b.pvc}
		},
	}
}

// reserved runs the pod's cycle up to Reserve. It asserts that no PersistentVolume is read.
func reserved(t *testing.T, p *Plugin, pod *corev1.Pod) fwk.CycleState {
	t.Helper()
	cycle := framework.NewCycleState()
	if _, status := p.PreFilter(t.Context(), cycle, pod, nil); !status.IsSkip() {
		t.Fatalf("PreFilter: %v, want Skip", status)
	}
	if status := p.PreScore(t.Context(), cycle, pod, nil); !status.IsSkip() {
		t.Fatalf("PreScore: %v, want Skip", status)
	}
	if status := p.Reserve(t.Context(), cycle, pod, pod.Spec.NodeName); !status.IsSuccess() {
		t.Fatalf("Reserve: %v", status)
	}
	return cycle
}

// TestDelegatedClaims asserts that the claims of a pod that DiskCapacity decides about are bound, and that the stock
// plugin is not called.
func TestDelegatedClaims(t *testing.T) {
	posted := []string{"POST persistentvolumes"}
	for name, preFlight := range map[string]bool{"in Bind": true, "in PreBind, without a call of PreBindPreFlight": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			p := delegatedPlugin(b)
			cycle := reserved(t, p, b.pod)
			b.during(posted[0], func() { b.notifyBound(t, nil) })
			var want []string
			if preFlight {
				if _, status := p.PreBindPreFlight(t.Context(), cycle, b.pod, "n1"); !status.IsSkip() {
					t.Fatalf("PreBindPreFlight: %v, want Skip", status)
				}
			} else {
				want = posted
				if status := p.PreBind(t.Context(), cycle, b.pod, "n1"); !status.IsSuccess() {
					t.Fatalf("PreBind: %v", status)
				}
			}
			if !slices.Equal(b.api.requests, want) {
				t.Errorf("requests before Bind: %v, want %v", b.api.requests, want)
			}
			// The pod itself is left to the next plugins.
			if status := p.Bind(t.Context(), cycle, b.pod, "n1"); !status.IsSkip() {
				t.Fatalf("Bind: %v, want Skip", status)
			}
			if !slices.Equal(b.api.requests, posted) {
				t.Errorf("requests %v, want %v", b.api.requests, posted)
			}
			if len(b.inner.got) > 0 {
				t.Errorf("the stock binder was to bind %v", b.inner.got)
			}
		})
	}
}

// TestDelegatedClaimsUnreserved asserts that nothing is kept of such a pod after Unreserve.
func TestDelegatedClaimsUnreserved(t *testing.T) {
	b := newBench(t)
	p := delegatedPlugin(b)
	p.Unreserve(t.Context(), reserved(t, p, b.pod), b.pod, "n1")
	if len(b.api.requests) > 0 {
		t.Errorf("requests %v, want none", b.api.requests)
	}
}

// TestIncomplete asserts that EventsToRegister fails in an incomplete profile, so that the scheduler does not start. A
// profile that cannot be read counts as incomplete.
func TestIncomplete(t *testing.T) {
	lacks := errors.New("DiskCapacity is missing")
	p := &Plugin{checkProfile: func() error { return lacks }}
	if _, err := p.EventsToRegister(t.Context()); !errors.Is(err, lacks) {
		t.Errorf("got %v", err)
	}
	if _, err := New(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "cannot be checked") {
		t.Errorf("got %v", err)
	}
}
