package diskcapacity

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

func respondWith(code int, body *metav1.Status, got *corev1.Binding) http.HandlerFunc {
	body.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/binding") {
			http.NotFound(w, r)
			return
		}
		if got != nil {
			_ = json.NewDecoder(r.Body).Decode(got)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(body)
	}
}

func TestBindWritesTheRecord(t *testing.T) {
	var got corev1.Binding
	b := newBench(t, respondWith(http.StatusCreated, &metav1.Status{Status: metav1.StatusSuccess}, &got), "n1")
	b.publish(t, "n1", 10)
	pod := withVolume(podOf("a", 2), "logs", "1Gi", "ssd")
	state, _ := b.filter(t, pod)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	if status := b.framework.RunBindPlugins(b.ctx, state, pod, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	if got.Target.Name != "n1" || got.UID != pod.UID {
		t.Errorf("bound %s to %s", got.UID, got.Target.Name)
	}
	record, err := diskv1alpha1.DecodeRecord(got.Annotations[diskv1alpha1.AnnotationAllocation])
	if err != nil {
		t.Fatal(err)
	}
	data, _ := record.Volume("data")
	logs, _ := record.Volume("logs")
	if len(record.Volumes) != 2 || data.Length != 2*units.GiB || logs.Length != units.GiB || data.Disk != diskOf("n1") {
		t.Errorf("the record is %+v", record)
	}
	// The record that was written is believed when it comes back with the pod.
	pod = pod.DeepCopy()
	pod.Spec.NodeName, pod.Annotations = "n1", got.Annotations
	b.store(t, pod)
	node, records := b.plugin.ledger.Records(string(pod.UID))
	if node != "n1" || len(records) != 2 || records[0].Extent.Start != data.Start {
		t.Errorf("read back %v on %s", records, node)
	}
}

// failToBind runs the pod's cycle on node n1 up to Bind, which fails.
func (b *bench) failToBind(t *testing.T, pod *corev1.Pod) fwk.CycleState {
	t.Helper()
	state, _ := b.filter(t, pod)
	if status := b.framework.RunReservePluginsReserve(b.ctx, state, pod, "n1"); !status.IsSuccess() {
		t.Fatal(status)
	}
	if status := b.framework.RunBindPlugins(b.ctx, state, pod, "n1"); status.IsSuccess() {
		t.Fatal("bound")
	}
	return state
}

// TestBindFailures asserts for each response of the API server whether the space stays held.
func TestBindFailures(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	tests := map[string]struct {
		answer      *apierrors.StatusError
		held        bool
		nodeRefuses bool
	}{
		"forbidden":            {apierrors.NewForbidden(pods, "a", errors.New("by a policy")), false, true},
		"gone":                 {apierrors.NewNotFound(pods, "a"), false, false},
		"busy":                 {apierrors.NewTooManyRequestsError("later"), false, false},
		"conflict with itself": {apierrors.NewConflict(pods, "a", errors.New("pod a is already assigned")), true, false},
		"internal error":       {apierrors.NewInternalError(errors.New("etcd timed out")), true, false},
		"timeout":              {apierrors.NewTimeoutError("request did not complete", 0), true, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, respondWith(int(test.answer.ErrStatus.Code), &test.answer.ErrStatus, nil), "n1")
			b.publish(t, "n1", 10)
			pod := podOf("a", 6)
			b.store(t, pod)
			state := b.failToBind(t, pod)
			b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
			_, others := b.filter(t, podOf("b", 6))
			if held := !others["n1"].IsSuccess(); held != test.held {
				t.Errorf("held for others: %v, want %v", held, test.held)
			}
			_, again := b.filter(t, pod)
			if refuses := !again["n1"].IsSuccess(); refuses != test.nodeRefuses {
				t.Errorf("the pod itself, again: %v", again["n1"])
			}
			if test.nodeRefuses {
				if !strings.Contains(again["n1"].Message(), "by a policy") {
					t.Errorf("the reason is lost: %v", again["n1"])
				}
				b.publish(t, "n1", 11)
				if _, again := b.filter(t, pod); !again["n1"].IsSuccess() {
					t.Errorf("refused although the node published something newer: %v", again["n1"])
				}
			}
		})
	}
}

// TestDoubtOfADeletedPod asserts that a doubt about a pod that is already deleted is settled at once: no event would
// settle it.
func TestDoubtOfADeletedPod(t *testing.T) {
	for _, code := range []int32{http.StatusInternalServerError, http.StatusForbidden} {
		answer := &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: metav1.StatusReasonUnknown}
		b := newBench(t, respondWith(int(code), answer, nil), "n1")
		b.publish(t, "n1", 10)
		pod := podOf("a", 6) // not in the informer's store: its deletion was handled
		state := b.failToBind(t, pod)
		b.framework.RunReservePluginsUnreserve(b.ctx, state, pod, "n1")
		if b.plugin.ledger.Holds("a") {
			t.Errorf("after %d, space is held for a pod that is gone", code)
		}
		if have := b.plugin.ledger.Refusals("a", time.Now()); len(have) > 0 {
			t.Errorf("after %d, the refusals %v are kept for a pod that is gone", code, have)
		}
	}
}

// TestSettledDoubtWakes asserts that a settled doubt wakes waiting pods. For the scheduler the pod was pending all the
// time, so no event of it shows that its space is free.
func TestSettledDoubtWakes(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	woken := make(chan map[string]*corev1.Pod, 1)
	b.plugin.feed.activate = func(_ klog.Logger, pods map[string]*corev1.Pod) { woken <- pods }
	doubtful, fits, large, plain := podOf("doubtful", 8), podOf("fits", 6), podOf("large", 11), st.MakePod().Namespace("default").Name("plain").UID("plain").Obj()
	for _, pod := range []*corev1.Pod{doubtful, fits, large, plain} {
		b.store(t, pod)
	}
	if _, err := b.plugin.ledger.Reserve("doubtful", "n1", volumeRequestsOf(mustVolumes(t, doubtful))); err != nil {
		t.Fatal(err)
	}
	b.plugin.ledger.Doubt("doubtful")
	b.refuse(t, fits)
	b.refuse(t, large)
	b.removeFromStore(t, doubtful)
	b.plugin.feed.foldPod(klog.Background(), doubtful)
	if pods := testenv.Receive(t, "the requeue", woken); len(pods) != 1 || pods["default/fits"] != fits {
		t.Errorf("woken are %v, want the one that fits now", pods)
	}
}

func TestBindWithoutReservation(t *testing.T) {
	b := newBench(t, nil, "n1")
	pod := podOf("a", 1)
	if status := b.plugin.Bind(b.ctx, nil, pod, "n1"); status.Code() != fwk.Error || !strings.Contains(status.Message(), "is gone") {
		t.Errorf("got %v", status)
	}
}

// TestBindSlots asserts that no disk pod is placed while MaxWriters pods are being bound, and that other pods
// are. Disk pods are placed again when one binding has ended.
func TestBindSlots(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	if err := b.plugin.feed.bindSlots.Acquire(b.ctx, MaxWriters); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, status := b.plugin.PreFilter(impatient, framework.NewCycleState(), podOf("a", 1), b.nodes); !strings.Contains(status.Message(), "waiting for pods to be bound") {
		t.Errorf("a disk pod: %v", status)
	}
	if _, status := b.plugin.PreFilter(impatient, framework.NewCycleState(), st.MakePod().Name("plain").Obj(), b.nodes); !status.IsSkip() {
		t.Errorf("a pod without disks: %v", status)
	}
	b.plugin.feed.bindSlots.Release(1)
	if _, status := b.plugin.PreFilter(b.ctx, framework.NewCycleState(), podOf("a", 1), b.nodes); !status.IsSuccess() {
		t.Errorf("when one is through: %v", status)
	}
}

// TestHangingBindings asserts that one pod waits for hanging bindings, for a bounded time, and the other pods not at
// all, until one binding has ended.
func TestHangingBindings(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	binders := &b.plugin.feed.bindSlots
	if err := binders.Acquire(b.ctx, MaxWriters); err != nil {
		t.Fatal(err)
	}
	try := func() *fwk.Status {
		t.Helper()
		done := make(chan *fwk.Status, 1)
		go func() {
			_, status := b.plugin.PreFilter(b.ctx, framework.NewCycleState(), podOf("a", 1), b.nodes)
			done <- status
		}()
		return testenv.Receive(t, "PreFilter, which every other pod waits for", done)
	}
	binders.maxWait = time.Millisecond
	// After an error the scheduler retries the pod after its backoff, without an event.
	if status := try(); status.Code() != fwk.Error || !strings.Contains(status.Message(), errBusy.Error()) {
		t.Errorf("the first pod: %v", status)
	}
	binders.maxWait = time.Hour
	if status := try(); status.Code() != fwk.Error {
		t.Errorf("the second pod: %v", status)
	}
	binders.Release(1)
	if status := try(); !status.IsSuccess() {
		t.Errorf("when one is through: %v", status)
	}
	if binders.stuck.Load() {
		t.Error("the next pod would not wait, although bindings go on")
	}
}
