package bench

import (
	"context"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The provisioners of the drivers that Berth is compared with: one whose capacity nobody
// checks, and one with a CSIStorageCapacity for every node.
const (
	stubProvisioner     = "stub.bench.example.com"
	capacityProvisioner = "capacity.bench.example.com"
)

const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// startStub runs the fastest provisioner that there can be: as soon as a claim has a node it
// has a PersistentVolume, made with one write, by a process that does nothing else.
func (f *fakeCluster) startStub(ctx context.Context, tb testing.TB) {
	tb.Helper()
	clientset := f.clientset(tb)
	factory := informers.NewSharedInformerFactory(clientset, 0)
	var made sync.Map
	provision := func(obj any) {
		pvc, ok := obj.(*corev1.PersistentVolumeClaim)
		if !ok || pvc.Spec.VolumeName != "" || pvc.Annotations[annotationSelectedNode] == "" || pvc.Spec.StorageClassName == nil {
			return
		}
		driver := *pvc.Spec.StorageClassName
		if driver != stubProvisioner && driver != capacityProvisioner {
			return
		}
		if _, twice := made.LoadOrStore(pvc.UID, nil); twice {
			return
		}
		go func() {
			_, err := clientset.CoreV1().PersistentVolumes().Create(ctx, stubVolume(pvc, driver), metav1.CreateOptions{})
			if err != nil && ctx.Err() == nil {
				tb.Errorf("the stub provisioner: %v", err)
			}
		}()
	}
	_, err := factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: provision, UpdateFunc: func(_, obj any) { provision(obj) },
	})
	f.must(tb, err)
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
}

// stubVolume is what external-provisioner would make.
func stubVolume(pvc *corev1.PersistentVolumeClaim, driver string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(pvc.UID), Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driver}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: pvc.Spec.Resources.Requests, AccessModes: pvc.Spec.AccessModes, VolumeMode: pvc.Spec.VolumeMode,
			StorageClassName: *pvc.Spec.StorageClassName, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: pvc.Namespace, Name: pvc.Name, UID: pvc.UID, ResourceVersion: pvc.ResourceVersion,
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{pvc.Annotations[annotationSelectedNode]},
				}},
			}}}},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: string(pvc.UID)}},
		},
	}
}

// publishCapacity makes what external-provisioner would: one CSIStorageCapacity a node.
func (f *fakeCluster) publishCapacity(ctx context.Context, tb testing.TB) {
	tb.Helper()
	yes, no := true, false
	f.must(tb, f.client.Create(ctx, &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: capacityProvisioner},
		Spec:       storagev1.CSIDriverSpec{StorageCapacity: &yes, AttachRequired: &no},
	}))
	nodes := &corev1.NodeList{}
	f.must(tb, f.client.List(ctx, nodes))
	free := resource.MustParse("1Ti")
	f.parallel(ctx, tb, len(nodes.Items), func(ctx context.Context, i int) error {
		name := nodes.Items[i].Name
		return f.client.Create(ctx, &storagev1.CSIStorageCapacity{
			ObjectMeta:       metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "capacity-" + name},
			NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: name}},
			StorageClassName: capacityProvisioner,
			Capacity:         &free, MaximumVolumeSize: &free,
		})
	})
}

// removeVolumes deletes all claims of the namespace, and all PersistentVolumes, for whose
// volumes there are no agents.
func (f *fakeCluster) removeVolumes(ctx context.Context, tb testing.TB, namespace string) {
	tb.Helper()
	f.must(tb, f.client.DeleteAllOf(ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(namespace)))
	f.must(tb, f.client.DeleteAllOf(ctx, &corev1.PersistentVolume{}))
	for {
		claims, volumes := &corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}
		f.must(tb, f.client.List(ctx, claims, client.InNamespace(namespace)))
		f.must(tb, f.client.List(ctx, volumes))
		if len(claims.Items)+len(volumes.Items) == 0 {
			return
		}
		f.parallel(ctx, tb, len(claims.Items), func(ctx context.Context, i int) error { return f.letGo(ctx, &claims.Items[i]) })
		f.parallel(ctx, tb, len(volumes.Items), func(ctx context.Context, i int) error { return f.letGo(ctx, &volumes.Items[i]) })
		if err := ctx.Err(); err != nil {
			tb.Fatalf("%d claims and %d volumes are left: %v", len(claims.Items), len(volumes.Items), context.Cause(ctx))
		}
	}
}

// letGo removes the finalizers of an object.
func (f *fakeCluster) letGo(ctx context.Context, object client.Object) error {
	err := f.client.Patch(ctx, object, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
