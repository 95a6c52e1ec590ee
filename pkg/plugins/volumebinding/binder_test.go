package volumebinding

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	stock "k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// stockBinder stands for the stock binder that is decorated.
type stockBinder struct {
	stock.SchedulerVolumeBinder
	got []*stock.PodVolumes
	err error
}

func (s *stockBinder) BindPodVolumes(_ context.Context, _ *corev1.Pod, v *stock.PodVolumes) error {
	s.got = append(s.got, v)
	return s.err
}

func (s *stockBinder) AssumePodVolumes(klog.Logger, *corev1.Pod, string, *stock.PodVolumes) (bool, error) {
	return false, s.err
}

// bench is a binder, its API server, and a pod that has 4 GiB reserved on node n1 for its
// claim "data".
type bench struct {
	*binder
	api     *api
	inner   *stockBinder
	ledger  *ledger.Ledger
	factory informers.SharedInformerFactory
	pod     *corev1.Pod
	pvc     *corev1.PersistentVolumeClaim
	class   *storagev1.StorageClass
	// timers are the functions that the binder has deferred.
	timers []func()
}

func diskOf(node string) string { return diskv1alpha1.PartitionID("disk of " + node) }

func newBench(t *testing.T) *bench {
	t.Helper()
	a, client := newAPI(t)
	b := &bench{api: a, inner: &stockBinder{}, ledger: ledger.New(), factory: informers.NewSharedInformerFactory(client, 0)}
	core := b.factory.Core().V1()
	w, err := newChangeNotifier(core.PersistentVolumeClaims().Informer(), core.Pods().Informer())
	if err != nil {
		t.Fatal(err)
	}
	b.binder = &binder{
		SchedulerVolumeBinder: b.inner, client: client, claims: core.PersistentVolumeClaims().Lister(), pods: core.Pods().Lister(),
		classes: b.factory.Storage().V1().StorageClasses().Lister(), changes: w, timeout: 2 * time.Second, controllerPatience: time.Minute, writers: semaphore.NewWeighted(diskcapacity.MaxWriters),
		ledger: func() (*ledger.Ledger, error) { return b.ledger, nil },
		later:  func(_ time.Duration, do func()) { b.timers = append(b.timers, do) },
	}
	for i, node := range []string{"n1", "n2"} {
		b.ledger.SetCapacity(node, &ledger.Capacity{Revision: uint64(i + 1), Disks: []ledger.Disk{{
			ID: diskOf(node), Class: "ssd", Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{extent.New(diskv1alpha1.Alignment, 10*units.GiB)},
		}}})
	}
	b.class = objects.StorageClass("ssd", "ssd")
	b.class.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimRetain)
	b.pvc = pvcOf("data", "ssd", "3b6d1e0c-9f52-4b6a-9d5d-111111111111")
	b.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "pod"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	for _, add := range []error{
		b.factory.Storage().V1().StorageClasses().Informer().GetIndexer().Add(b.class),
		core.PersistentVolumeClaims().Informer().GetIndexer().Add(b.pvc),
		core.Pods().Informer().GetIndexer().Add(b.pod),
	} {
		if add != nil {
			t.Fatal(add)
		}
	}
	a.claims[b.pvc.Name] = b.pvc.DeepCopy()
	b.reserve(t, "n1")
	return b
}

func pvcOf(name, class, uid string) *corev1.PersistentVolumeClaim {
	pvc := objects.Claim("default", name, class, "4Gi")
	pvc.UID, pvc.ResourceVersion = types.UID(uid), "1"
	return pvc
}

func (b *bench) want() ledger.VolumeRequest {
	return ledger.VolumeRequest{
		Partition: diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(b.pvc.UID)), Persistent: true,
		Request: placement.Request{Class: "ssd", Size: 4 * units.GiB},
	}
}

func (b *bench) reserve(t *testing.T, node string) {
	t.Helper()
	if _, err := b.ledger.Reserve("pod", node, []ledger.VolumeRequest{b.want()}); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) free(node string) int64 { return b.ledger.Snapshot(node).Node.Disks[0].Free.Total() }

// made is the volume as another component would have created it.
func (b *bench) made(t *testing.T, node string) *corev1.PersistentVolume {
	t.Helper()
	wanted, err := claim.Request(b.pvc, b.class)
	if err != nil {
		t.Fatal(err)
	}
	pv := claim.NewVolume(b.pvc, b.class, wanted, node, diskv1alpha1.Place{Disk: diskOf(node), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 4 * units.GiB}})
	pv.UID, pv.ResourceVersion = "made-before", "1"
	return pv
}

// notifyBound has the informer see that the controller has bound the claim.
func (b *bench) notifyBound(t *testing.T, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	now := b.pvc.DeepCopy()
	now.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(b.pvc.UID)
	now.Status.Phase = corev1.ClaimBound
	if change != nil {
		change(now)
	}
	if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Update(now); err != nil {
		t.Error(err)
	}
	b.changes.notify(claimKind, now, false)
}

func (b *bench) bind() error {
	return b.BindPodVolumes(context.Background(), b.pod, &stock.PodVolumes{DynamicProvisions: []*stock.DynamicProvision{{PVC: b.pvc.DeepCopy()}}})
}

// bindWhile binds, and calls do as soon as the API server has had the request.
func (b *bench) bindWhile(request string, do func()) error {
	b.during(request, do)
	return b.bind()
}

// during calls do as soon as the API server has had the request.
func (b *bench) during(request string, do func()) {
	done := make(chan struct{})
	b.api.locked(func() {
		before := b.api.before
		b.api.before = func(r string) (int, metav1.StatusReason) {
			if r == request && done != nil {
				go do()
				done = nil
			}
			if before != nil {
				return before(r)
			}
			return 0, ""
		}
	})
}

func TestBind(t *testing.T) {
	b := newBench(t)
	if err := b.bindWhile("POST persistentvolumes", func() { b.notifyBound(t, nil) }); err != nil {
		t.Fatal(err)
	}
	pv := b.api.volume(diskv1alpha1.ClaimVolumeID(b.pvc.UID))
	if v, err := claim.ReadVolume(pv); err != nil || v.Node != "n1" || v.Size != 4*units.GiB || !claim.IsFor(pv, b.pvc) {
		t.Errorf("made %+v, %v", pv, err)
	}
	if want := []string{"POST persistentvolumes"}; !slices.Equal(b.api.requests, want) {
		t.Errorf("requests %v, want %v", b.api.requests, want)
	}
	// The volume's record holds the place now.
	b.ledger.Forget("pod")
	if node, _, ok := b.ledger.Where(b.want().Partition); !ok || node != "n1" || b.free("n1") != 6*units.GiB {
		t.Errorf("the ledger has it on %q, and %d bytes free", node, b.free("n1"))
	}
	b.ledger.DeleteVolume(string(pv.UID))
	if b.free("n1") != 10*units.GiB {
		t.Errorf("%d bytes are free when the volume has gone: something else holds it", b.free("n1"))
	}
	if len(b.inner.got) > 0 {
		t.Error("the stock binder was called for nothing")
	}
}

// TestBindResumes asserts that binding continues from what an earlier try, another pod or the controller has done.
func TestBindResumes(t *testing.T) {
	tests := map[string]struct {
		before func(t *testing.T, b *bench)
		says   string // the error; none if it is bound
		free   int64  // GiB on n1 when the pod gave its place up
	}{
		"made before": {func(t *testing.T, b *bench) {
			b.api.volumes[diskv1alpha1.ClaimVolumeID(b.pvc.UID)] = b.made(t, "n1")
		}, "", 6},
		"made on another node": {func(t *testing.T, b *bench) {
			b.api.volumes[diskv1alpha1.ClaimVolumeID(b.pvc.UID)] = b.made(t, "n2")
		}, "is on node n2 already", 10},
		"for another claim": {func(t *testing.T, b *bench) {
			pv := b.made(t, "n1")
			pv.Spec.ClaimRef.UID = "another"
			b.api.volumes[pv.Name] = pv
		}, "was not made for it: delete that", 10},
		"of another driver": {func(t *testing.T, b *bench) {
			pv := b.made(t, "n1")
			pv.Spec.CSI.Driver = "other"
			b.api.volumes[pv.Name] = pv
		}, "was not made for it: delete that", 10},
		"being deleted": {func(t *testing.T, b *bench) {
			pv := b.made(t, "n1")
			pv.DeletionTimestamp = &metav1.Time{Time: time.Now()}
			b.api.volumes[pv.Name] = pv
		}, "is being deleted, and must be gone first", 10},
		"named by another writer": {func(t *testing.T, b *bench) {
			pvc := b.api.claims["data"]
			pvc.ResourceVersion, pvc.Spec.VolumeName = "7", diskv1alpha1.ClaimVolumeID(b.pvc.UID)
		}, "", 6},
		"changed by another writer": {func(t *testing.T, b *bench) {
			pvc := b.api.claims["data"]
			pvc.ResourceVersion, pvc.Labels = "7", map[string]string{"a": "b"}
		}, "", 6},
		"bound to another volume": {func(t *testing.T, b *bench) {
			pvc := b.api.claims["data"]
			pvc.ResourceVersion, pvc.Spec.VolumeName = "7", "other"
		}, "it was bound to PersistentVolume other meanwhile", 6},
		"claim gone":     {func(t *testing.T, b *bench) { delete(b.api.claims, "data") }, "the claim was deleted", 6},
		"claim replaced": {func(t *testing.T, b *bench) { b.api.claims["data"].UID = "another" }, "the claim was deleted", 6},
		"claim going": {func(t *testing.T, b *bench) {
			pvc := b.api.claims["data"]
			pvc.ResourceVersion, pvc.DeletionTimestamp = "7", &metav1.Time{Time: time.Now()}
		}, "the claim was deleted", 6},
		"class gone": {func(t *testing.T, b *bench) {
			if err := b.factory.Storage().V1().StorageClasses().Informer().GetIndexer().Delete(b.class); err != nil {
				t.Fatal(err)
			}
		}, "its StorageClass ssd was deleted: create it again", 10},
		"nothing reserved":   {func(t *testing.T, b *bench) { b.ledger.Forget("pod") }, "nothing is reserved for it any more", 10},
		"reserved elsewhere": {func(t *testing.T, b *bench) { b.reserve(t, "n2") }, "is on node n2 already", 10},
		"refused": {func(t *testing.T, b *bench) {
			b.api.before = func(string) (int, metav1.StatusReason) { return http.StatusForbidden, metav1.StatusReasonForbidden }
		}, "making its PersistentVolume pvc-", 10},
		"busy": {func(t *testing.T, b *bench) {
			b.api.before = func(string) (int, metav1.StatusReason) {
				return http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests
			}
		}, "making its PersistentVolume pvc-", 10},
		"an error in between": {func(t *testing.T, b *bench) {
			failures := 4
			b.api.before = func(string) (int, metav1.StatusReason) {
				if failures--; failures >= 0 {
					return http.StatusInternalServerError, metav1.StatusReasonInternalError
				}
				return 0, ""
			}
		}, "", 6},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.controllerPatience = time.Millisecond
			test.before(t, b)
			err := b.bind()
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Fatalf("got %v, want %q", err, test.says)
			}
			if err != nil && !strings.Contains(err.Error(), "binding claim default/data on node n1") {
				t.Errorf("the error does not name the claim: %v", err)
			}
			b.ledger.Forget("pod")
			if have := b.free("n1"); have != test.free*units.GiB {
				t.Errorf("%d GiB are free, want %d", have/units.GiB, test.free)
			}
			if err := b.ledger.Validate(); err != nil {
				t.Error(err)
			}
			leaked := test.says != "" && slices.Contains(b.api.requests, "POST persistentvolumes") && b.api.volumes[diskv1alpha1.ClaimVolumeID(b.pvc.UID)] != nil
			if leaked && b.api.volumes[diskv1alpha1.ClaimVolumeID(b.pvc.UID)].UID != "made-before" {
				t.Error("the volume that was made is left")
			}
		})
	}
}

// TestDoubt asserts that no other pod gets the place of a volume while it is not known whether it was made. This also
// holds when the pod is gone.
func TestDoubt(t *testing.T) {
	b := newBench(t)
	b.timeout = 50 * time.Millisecond
	b.api.before = func(string) (int, metav1.StatusReason) {
		return http.StatusInternalServerError, metav1.StatusReasonInternalError
	}
	if err := b.bind(); err == nil {
		t.Fatal("bound")
	}
	b.ledger.DeletePod("pod")
	if b.free("n1") != 6*units.GiB {
		t.Errorf("%d GiB are free while the volume may exist", b.free("n1")/units.GiB)
	}
	// It does not tie the next pod to the node.
	if node, _, ok := b.ledger.Where(b.want().Partition); ok {
		t.Errorf("the claim is tied to %s", node)
	}
	// The next try knows.
	b.api.locked(func() { b.api.before = nil })
	b.timeout = 2 * time.Second
	b.pod.UID = "pod"
	b.reserve(t, "n2")
	b.pod.Spec.NodeName = "n2"
	if err := b.bindWhile("POST persistentvolumes", func() { b.notifyBound(t, nil) }); err != nil {
		t.Fatal(err)
	}
	if b.free("n1") != 10*units.GiB || b.free("n2") != 6*units.GiB {
		t.Errorf("%d and %d GiB are free", b.free("n1")/units.GiB, b.free("n2")/units.GiB)
	}
}

// newDoubt is a bench whose pod was deleted while a write of its binding had no known outcome.
func newDoubt(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.timeout = 50 * time.Millisecond
	b.api.before = func(string) (int, metav1.StatusReason) { return http.StatusGatewayTimeout, metav1.StatusReasonTimeout }
	if err := b.bind(); err == nil {
		t.Fatal("bound")
	}
	b.ledger.DeletePod("pod")
	return b
}

// TestDoubtEndsWithTheClaim asserts that a doubt ends with its claim when there is no later try.
func TestDoubtEndsWithTheClaim(t *testing.T) {
	b := newDoubt(t)
	b.changes.notify(claimKind, b.pvc, true)
	if b.free("n1") != 10*units.GiB {
		t.Errorf("%d GiB are free after the claim has gone", b.free("n1")/units.GiB)
	}
}

// TestDoubtOfAnotherClaim asserts that a doubt about a deleted claim ends, although a claim of the same name exists by
// now: UIDs are compared, not names.
func TestDoubtOfAnotherClaim(t *testing.T) {
	again := func(b *bench) *corev1.PersistentVolumeClaim {
		pvc := b.pvc.DeepCopy()
		pvc.UID = "3b6d1e0c-9f52-4b6a-9d5d-333333333333"
		return pvc
	}
	for name, test := range map[string]struct{ before, after func(t *testing.T, b *bench) }{
		"while the volume was being made": {before: func(t *testing.T, b *bench) {
			if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Update(again(b)); err != nil {
				t.Fatal(err)
			}
		}},
		"afterwards, and the watch was interrupted": {after: func(_ *testing.T, b *bench) { b.changes.notifyUpdate(claimKind, b.pvc, again(b)) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.timeout = 50 * time.Millisecond
			b.api.before = func(string) (int, metav1.StatusReason) { return http.StatusGatewayTimeout, metav1.StatusReasonTimeout }
			if test.before != nil {
				test.before(t, b)
			}
			if err := b.bind(); err == nil {
				t.Fatal("bound")
			}
			b.ledger.DeletePod("pod")
			if test.after != nil {
				if b.free("n1") != 6*units.GiB {
					t.Errorf("%d GiB are free while the volume may exist", b.free("n1")/units.GiB)
				}
				test.after(t, b)
			}
			if b.free("n1") != 10*units.GiB {
				t.Errorf("%d GiB are free: the place of a claim that is gone is held", b.free("n1")/units.GiB)
			}
		})
	}
}

// TestProvisioningIsGivenUp asserts that the tries to make a volume end with its pod and with its claim, and that the
// slot is free between tries.
func TestProvisioningIsGivenUp(t *testing.T) {
	for name, gone := range map[string]func(t *testing.T, b *bench){
		"pod gone": func(t *testing.T, b *bench) {
			if err := b.factory.Core().V1().Pods().Informer().GetIndexer().Delete(b.pod); err != nil {
				t.Error(err)
			}
			b.changes.notify(podKind, b.pod, true)
		},
		"claim gone": func(t *testing.T, b *bench) {
			if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Delete(b.pvc); err != nil {
				t.Error(err)
			}
			b.changes.notify(claimKind, b.pvc, true)
		},
		"claim made again": func(t *testing.T, b *bench) {
			pvc := b.pvc.DeepCopy()
			pvc.UID = "another"
			if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Update(pvc); err != nil {
				t.Error(err)
			}
			b.changes.notifyUpdate(claimKind, b.pvc, pvc)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			// Without the rule, the test ends with its own time only.
			b.timeout = time.Hour
			b.writers = semaphore.NewWeighted(1)
			tried := make(chan struct{}, 100)
			b.api.before = func(string) (int, metav1.StatusReason) {
				tried <- struct{}{}
				return http.StatusInternalServerError, metav1.StatusReasonInternalError
			}
			ended := make(chan error, 1)
			go func() { ended <- b.bind() }()
			free, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			testenv.Receive(t, "the first try", tried)
			if err := b.writers.Acquire(free, 1); err != nil {
				t.Fatal("the slot is held between the tries")
			}
			b.writers.Release(1)
			gone(t, b)
			if err := testenv.Receive(t, "the end of the tries", ended); !errors.Is(err, errUnknown) {
				t.Errorf("got %v, want an unknown outcome", err)
			}
			b.ledger.DeletePod("pod")
			if want := map[bool]int64{true: 6, false: 10}[name == "pod gone"]; b.free("n1") != want*units.GiB {
				t.Errorf("%d GiB are free, want %d", b.free("n1")/units.GiB, want)
			}
		})
	}
}

// TestRefusedAfterDoubt asserts that a refusal of a later try does not settle an earlier one that may have been done.
func TestRefusedAfterDoubt(t *testing.T) {
	b := newBench(t)
	tries := 0
	b.api.before = func(string) (int, metav1.StatusReason) {
		if tries++; tries == 1 {
			return http.StatusGatewayTimeout, metav1.StatusReasonTimeout
		}
		return http.StatusForbidden, metav1.StatusReasonForbidden
	}
	if err := b.bind(); !errors.Is(err, errUnknown) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	b.ledger.DeletePod("pod")
	if b.free("n1") != 6*units.GiB {
		t.Errorf("%d GiB are free while the volume may exist", b.free("n1")/units.GiB)
	}
}

// TestDoubtIsSettled asserts that the place of a volume that may have been made becomes free again. This happens when
// no request can be on its way and the volume does not exist.
func TestDoubtIsSettled(t *testing.T) {
	for name, test := range map[string]struct {
		during func(b *bench)
		free   int64 // GiB
		timers int
	}{
		"not made": {func(*bench) {}, 10, 1},
		"made": {func(b *bench) {
			pv := b.made(t, "n1")
			b.api.volumes[pv.Name] = pv
		}, 6, 1},
		"the API server does not answer": {func(b *bench) {
			b.api.before = func(string) (int, metav1.StatusReason) { return http.StatusGatewayTimeout, metav1.StatusReasonTimeout }
		}, 6, 2},
	} {
		t.Run(name, func(t *testing.T) {
			b := newDoubt(t)
			b.api.locked(func() { b.api.before = nil; test.during(b) })
			b.timers[0]()
			if len(b.timers) != test.timers || b.free("n1") != test.free*units.GiB {
				t.Errorf("%d GiB are free, want %d; %d timers, want %d", b.free("n1")/units.GiB, test.free, len(b.timers), test.timers)
			}
			if b.ledger.Holds("binding/"+string(b.pvc.UID)) != (test.timers == 2) {
				t.Error("held beside the volume's own record, or not held although nothing is known")
			}
		})
	}
}

// TestLaterDoubt asserts that the end of an earlier doubt does not end a later one of the same claim.
func TestLaterDoubt(t *testing.T) {
	b := newBench(t)
	b.timeout = 50 * time.Millisecond
	b.api.before = func(string) (int, metav1.StatusReason) { return http.StatusGatewayTimeout, metav1.StatusReasonTimeout }
	for range 2 {
		if err := b.bind(); err == nil {
			t.Fatal("bound")
		}
		b.reserve(t, "n1")
	}
	b.ledger.DeletePod("pod")
	b.api.locked(func() { b.api.before = nil })
	b.timers[0]()
	if b.free("n1") != 6*units.GiB {
		t.Errorf("%d GiB are free while the second volume may exist", b.free("n1")/units.GiB)
	}
	b.timers[1]()
	if b.free("n1") != 10*units.GiB {
		t.Errorf("%d GiB are free, want 10", b.free("n1")/units.GiB)
	}
}

// TestWaitForBoundEnds asserts that waiting for a claim to be bound ends when it cannot be bound any more.
func TestWaitForBoundEnds(t *testing.T) {
	tests := map[string]struct {
		happens func(t *testing.T, b *bench)
		says    string
	}{
		"claim deleted": {func(t *testing.T, b *bench) {
			b.api.locked(func() { delete(b.api.claims, "data") })
			if err := b.factory.Core().V1().PersistentVolumeClaims().Informer().GetIndexer().Delete(b.pvc); err != nil {
				t.Error(err)
			}
			b.changes.notify(claimKind, b.pvc, true)
		}, "the claim was deleted"},
		"claim being deleted": {func(t *testing.T, b *bench) {
			b.notifyBound(t, func(pvc *corev1.PersistentVolumeClaim) { pvc.DeletionTimestamp = &metav1.Time{Time: time.Now()} })
		}, "the claim was deleted"},
		"claim lost": {func(t *testing.T, b *bench) {
			b.notifyBound(t, func(pvc *corev1.PersistentVolumeClaim) { pvc.Status.Phase = corev1.ClaimLost })
		}, "delete the claim, too"},
		"bound to another": {func(t *testing.T, b *bench) {
			b.notifyBound(t, func(pvc *corev1.PersistentVolumeClaim) { pvc.Spec.VolumeName = "other" })
		}, "it was bound to PersistentVolume other meanwhile"},
		"pod deleted": {func(t *testing.T, b *bench) {
			if err := b.factory.Core().V1().Pods().Informer().GetIndexer().Delete(b.pod); err != nil {
				t.Error(err)
			}
			b.changes.notify(podKind, b.pod, true)
		}, "pod default/db was deleted"},
		"nothing": {func(_ *testing.T, b *bench) {}, "kube-controller-manager has not bound the two"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.timeout = testenv.Patience / 2
			if name == "nothing" {
				b.timeout = 100 * time.Millisecond
			}
			start := time.Now()
			err := b.bindWhile("POST persistentvolumes", func() { test.happens(t, b) })
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q", err, test.says)
			}
			if took := time.Since(start); took > testenv.Patience/4 {
				t.Errorf("noticed after %s", took)
			}
			if gone := b.api.volume(diskv1alpha1.ClaimVolumeID(b.pvc.UID)) == nil; gone != slices.Contains([]string{"claim deleted", "claim being deleted", "bound to another"}, name) {
				t.Errorf("the volume is gone: %v", gone)
			}
			if len(b.changes.subscribers) != 0 {
				t.Error("a pod is still waiting")
			}
		})
	}
}

// TestDiscardLeavesWhatWasUsed asserts that a volume that was bound is left to its reclaim policy.
func TestDiscardLeavesWhatWasUsed(t *testing.T) {
	for phase, left := range map[corev1.PersistentVolumePhase]bool{
		"": false, corev1.VolumePending: false, corev1.VolumeAvailable: false, corev1.VolumeBound: true, corev1.VolumeReleased: true,
	} {
		b := newBench(t)
		pv := b.made(t, "n1")
		pv.Status.Phase = phase
		b.api.volumes[pv.Name] = pv
		b.discard(t.Context(), pv)
		if have := b.api.volume(pv.Name) != nil; have != left {
			t.Errorf("phase %q: the volume is left: %v", phase, have)
		}
		another := b.made(t, "n1")
		another.UID = "another"
		b.api.volumes[pv.Name] = another
		b.discard(t.Context(), pv)
		if b.api.volume(pv.Name) == nil {
			t.Error("a volume of the same name was deleted")
		}
	}
}

// TestClaimsOfOtherDrivers asserts that the stock binder binds claims of other drivers, and before ours.
func TestClaimsOfOtherDrivers(t *testing.T) {
	other := pvcOf("other", "foreign", "3b6d1e0c-9f52-4b6a-9d5d-222222222222")
	both := func(b *bench) *stock.PodVolumes {
		return &stock.PodVolumes{DynamicProvisions: []*stock.DynamicProvision{{PVC: b.pvc.DeepCopy()}, {PVC: other}}}
	}
	t.Run("first", func(t *testing.T) {
		b := newBench(t)
		go b.notifyBound(t, nil)
		if err := b.BindPodVolumes(t.Context(), b.pod, both(b)); err != nil {
			t.Fatal(err)
		}
		if len(b.inner.got) != 1 || len(b.inner.got[0].DynamicProvisions) != 1 || b.inner.got[0].DynamicProvisions[0].PVC != other || b.inner.got[0].StaticBindings == nil {
			t.Errorf("the stock binder got %+v", b.inner.got)
		}
	})
	t.Run("failed", func(t *testing.T) {
		b := newBench(t)
		b.inner.err = errors.New("no such luck")
		if err := b.BindPodVolumes(t.Context(), b.pod, both(b)); !errors.Is(err, b.inner.err) {
			t.Errorf("got %v", err)
		}
		if len(b.api.requests) > 0 {
			t.Errorf("requests %v: ours was made for a pod that may have to go elsewhere", b.api.requests)
		}
	})
	t.Run("alone", func(t *testing.T) {
		b := newBench(t)
		if err := b.BindPodVolumes(t.Context(), b.pod, &stock.PodVolumes{DynamicProvisions: []*stock.DynamicProvision{{PVC: other}}}); err != nil {
			t.Fatal(err)
		}
		if len(b.inner.got) != 1 || len(b.api.requests) > 0 {
			t.Errorf("the stock binder was called %d times, requests %v", len(b.inner.got), b.api.requests)
		}
	})
	t.Run("deferred only without", func(t *testing.T) {
		b := newBench(t)
		if _, err := b.AssumePodVolumes(klog.Background(), b.pod, "n1", both(b)); err != nil {
			t.Fatal(err)
		}
		if _, quick := b.onlyOurs.Load(b.pod.UID); quick {
			t.Error("a pod with another driver's claim is bound at Bind")
		}
		if _, err := b.AssumePodVolumes(klog.Background(), b.pod, "n1", &stock.PodVolumes{DynamicProvisions: both(b).DynamicProvisions[:1]}); err != nil {
			t.Fatal(err)
		}
		if _, quick := b.onlyOurs.Load(b.pod.UID); !quick {
			t.Error("a pod with our claims only is bound at PreBind")
		}
	})
}

// TestControllerThatIsBehind asserts that the binder completes the claim of a controller that is behind as the
// controller would.
func TestControllerThatIsBehind(t *testing.T) {
	b := newBench(t)
	b.controllerPatience = time.Millisecond
	if err := b.bind(); err != nil {
		t.Fatal(err)
	}
	if pv := b.api.volume(diskv1alpha1.ClaimVolumeID(b.pvc.UID)); pv == nil || !claim.IsFor(pv, b.pvc) {
		t.Errorf("made %+v", pv)
	}
	pvc := b.api.claims[b.pvc.Name]
	if pvc.Spec.VolumeName != diskv1alpha1.ClaimVolumeID(b.pvc.UID) || pvc.Status.Phase != corev1.ClaimBound ||
		pvc.Status.Capacity.Storage().Value() != 4*units.GiB || len(pvc.Status.AccessModes) != 1 || pvc.Annotations[volume.AnnSelectedNode] != "n1" {
		t.Errorf("the claim is %+v", pvc)
	}
	if want := []string{"POST persistentvolumes", "PUT persistentvolumeclaims", "PUT persistentvolumeclaims/status"}; !slices.Equal(b.api.requests, want) {
		t.Errorf("requests %v, want %v", b.api.requests, want)
	}
	if b.free("n1") != 6*units.GiB {
		t.Errorf("%d GiB are free", b.free("n1")/units.GiB)
	}
}

// TestPreBindKeepsNothing asserts that nothing is kept of a pod whose claims are bound in PreBind.
func TestPreBindKeepsNothing(t *testing.T) {
	b := newBench(t)
	p := &Plugin{VolumeBinding: &stock.VolumeBinding{Binder: b.binder}, binder: b.binder}
	if _, err := b.AssumePodVolumes(klog.Background(), b.pod, "n1", &stock.PodVolumes{DynamicProvisions: []*stock.DynamicProvision{{PVC: b.pvc}}}); err != nil {
		t.Fatal(err)
	}
	if _, put := b.onlyOurs.Load(b.pod.UID); !put {
		t.Fatal("the pod is not noted")
	}
	p.PreBind(t.Context(), framework.NewCycleState(), b.pod, "n1")
	if _, left := b.onlyOurs.Load(b.pod.UID); left {
		t.Error("the pod is noted for ever")
	}
}
