package integration

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// claimControllers are those of claims. Not those that look after nodes: no kubelet keeps the
// simulated ones alive.
var claimControllers = []string{
	"serviceaccount-controller", "serviceaccount-token-controller", "persistentvolume-binder-controller",
	"persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller",
	"ephemeral-volume-controller", "garbage-collector-controller",
}

// claimSchedulers starts a control plane with the controllers of claims and our scheduler.
func claimSchedulers(t *testing.T) *schedulers {
	t.Helper()
	return claimSchedulersWith(t, cluster.Options{})
}

// claimSchedulersWith is claimSchedulers with further options.
func claimSchedulersWith(t *testing.T, o cluster.Options) *schedulers {
	t.Helper()
	o.ControllerManager, o.Controllers = true, claimControllers
	o.Manifests = []string{"config/crd", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml"}
	s := startPlane(t, o)
	c := s.cluster
	s.make(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}})
	if err := c.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.StopScheduler(); err != nil {
			t.Error(err)
		}
	})
	s.class(t, "ssd")
	s.storageClass(t, "ssd", nil)
	return s
}

func (s *schedulers) make(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := s.client.Create(t.Context(), o); err != nil {
			t.Fatalf("%T %s: %v", o, o.GetName(), err)
		}
	}
}

// storageClass makes a StorageClass of ours for DiskClass ssd, until the test ends.
func (s *schedulers) storageClass(t *testing.T, name string, change func(*storagev1.StorageClass)) *storagev1.StorageClass {
	t.Helper()
	class := objects.StorageClass(name, "ssd")
	if change != nil {
		change(class)
	}
	s.make(t, class)
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(s.client.Delete(context.WithoutCancel(t.Context()), class)); err != nil {
			t.Error(err)
		}
	})
	return class
}

// pvc makes a claim of so many GiB.
func (s *schedulers) pvc(t *testing.T, name, class string, sizeGiB int64) *corev1.PersistentVolumeClaim {
	t.Helper()
	pvc := objects.Claim(schedulerTests, name, class, objects.GiB(sizeGiB))
	s.make(t, pvc)
	return pvc
}

// claimPod is a pod with these claims.
func claimPod(name string, claims ...string) *corev1.Pod {
	return withClaims(plainPod(name, "berth"), claims...)
}

func withClaims(pod *corev1.Pod, claims ...string) *corev1.Pod {
	for _, c := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.ClaimVolume("claim-"+c, c))
	}
	return pod
}

// withEphemeral adds a generic ephemeral volume.
func withEphemeral(pod *corev1.Pod, name, class string, sizeGiB int64) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, objects.EphemeralVolume(name, class, objects.GiB(sizeGiB)))
	return pod
}

// reload reads an object again.
func (s *schedulers) reload(t *testing.T, o client.Object) {
	t.Helper()
	if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		t.Fatalf("%T %s: %v", o, o.GetName(), err)
	}
}

// waitNode waits until the pod is bound.
func (s *schedulers) waitNode(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Spec.NodeName == "" {
			return fmt.Errorf("pod %s is not bound: %v", pod.Name, pod.Status.Conditions)
		}
		return nil
	})
}

// volumeOf is the volume of a claim, when the two are bound, and held to be as large as asked.
func (s *schedulers) volumeOf(t *testing.T, name string) (*corev1.PersistentVolume, claim.Volume) {
	t.Helper()
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: name}}
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		if pvc.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("claim %s is %s", name, pvc.Status.Phase)
		}
		return nil
	})
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: pvc.Spec.VolumeName}}
	s.reload(t, pv)
	v, err := claim.ReadVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	if wanted := pvc.Spec.Resources.Requests[corev1.ResourceStorage]; v.Size < wanted.Value() {
		t.Errorf("the volume of claim %s has %d bytes, of %s", name, v.Size, wanted.String())
	}
	return pv, v
}

func (s *schedulers) volumes(t *testing.T) []corev1.PersistentVolume {
	t.Helper()
	var list corev1.PersistentVolumeList
	if err := s.client.List(context.WithoutCancel(t.Context()), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// holdApart checks that nothing that is recorded overlaps, of claims and pods together, and
// returns how many bytes are recorded.
func (s *schedulers) holdApart(t *testing.T) (total int64) {
	t.Helper()
	taken := map[string]extent.Set{}
	take := func(what, disk string, e extent.Extent) {
		if taken[disk].Overlaps(e) {
			t.Errorf("%s has %v of disk %s, which something else has", what, e, disk)
		}
		taken[disk] = taken[disk].Add(e)
		total += e.Len()
	}
	for _, pv := range s.volumes(t) {
		v, err := claim.ReadVolume(&pv)
		if err == nil {
			take("volume "+pv.Name, v.Place.Disk, extent.New(v.Place.Start, v.FirstLength()))
			for i, p := range v.Pieces {
				take(fmt.Sprintf("piece %d of volume %s", i+1, pv.Name), p.Disk, extent.New(p.Start, p.Length))
			}
		}
	}
	for _, pod := range s.bound(t) {
		record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
		if err != nil {
			continue
		}
		for _, v := range record.Volumes {
			take("pod "+pod.Name, v.Disk, extent.New(v.Start, v.Length))
		}
	}
	return total
}

// clearClaims deletes pods, claims and volumes, and waits until they are gone.
func (s *schedulers) clearClaims(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	s.clear(t)
	if err := s.client.DeleteAllOf(ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(schedulerTests)); err != nil {
		t.Error(err)
	}
	s.eventually(t, func(ctx context.Context) error {
		var claims corev1.PersistentVolumeClaimList
		if err := s.client.List(ctx, &claims, client.InNamespace(schedulerTests)); err != nil {
			return err
		}
		volumes := s.volumes(t)
		for i := range volumes {
			pv := &volumes[i]
			if err := client.IgnoreNotFound(s.client.Delete(ctx, pv)); err != nil {
				return err
			}
			// The nodes are gone by now.
			before := pv.DeepCopy()
			if controllerutil.RemoveFinalizer(pv, diskv1alpha1.FinalizerVolume) {
				err := s.client.Patch(ctx, pv, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
				if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
					return err
				}
			}
		}
		if len(claims.Items)+len(volumes) > 0 {
			return fmt.Errorf("%d claims and %d volumes are left", len(claims.Items), len(volumes))
		}
		return nil
	})
}

// waitNoVolumes waits until there is no PersistentVolume but these.
func (s *schedulers) waitNoVolumes(t *testing.T, but ...string) {
	t.Helper()
	s.eventually(t, func(context.Context) error {
		for _, pv := range s.volumes(t) {
			if !slices.Contains(but, pv.Name) {
				return fmt.Errorf("volume %s is left, %s", pv.Name, pv.Status.Phase)
			}
		}
		return nil
	})
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }

// otherVolume is a volume of another driver.
func otherVolume(name, class, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: *quantity(units.GiB)}, StorageClassName: class,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/mnt"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
}

// freeze stops a component's process as it stands, until thaw is called or the test ends.
func (s *schedulers) freeze(t *testing.T, component string) (thaw func()) {
	t.Helper()
	pid, err := s.cluster.PID(component)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// writes counts what the API server has written, by verb and resource.
func (s *schedulers) writes(t *testing.T) map[string]float64 {
	t.Helper()
	set, err := kubernetes.NewForConfig(s.cluster.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	text, err := set.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "apiserver_request_total{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(rest, "} ")
		get := func(name string) string {
			_, after, _ := strings.Cut(labels, name+`="`)
			value, _, _ := strings.Cut(after, `"`)
			return value
		}
		verb, what := get("verb"), get("resource")
		if sub := get("subresource"); sub != "" {
			what += "/" + sub
		}
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE", "APPLY"}, verb) || what == "leases" || strings.HasSuffix(what, "reviews") {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			t.Fatal(err)
		}
		if code := get("code"); !strings.HasPrefix(code, "2") {
			what += " (" + code + ")"
		}
		counts[verb+" "+what] += n
	}
	return counts
}
