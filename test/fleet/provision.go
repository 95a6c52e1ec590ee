package fleet

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// The provisioners of the drivers with which Berth is compared, and the names of their StorageClasses. The first one's
// capacity is not checked, and the second one has a CSIStorageCapacity for every node.
const (
	StubProvisioner     = "stub.bench.example.com"
	CapacityProvisioner = "capacity.bench.example.com"
)

const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// CreateStorageClasses makes a StorageClass for Berth and for each of the provisioners above, named after the
// provisioner.
func (f *Fleet) CreateStorageClasses(ctx context.Context) error {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	for _, provisioner := range []string{diskv1alpha1.DriverName, StubProvisioner, CapacityProvisioner} {
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: provisioner}, Provisioner: provisioner, VolumeBindingMode: &wait}
		if provisioner == diskv1alpha1.DriverName {
			class.Parameters = map[string]string{diskv1alpha1.AttributeClass: Class, diskv1alpha1.ParameterFSType: diskv1alpha1.FSTypeXFS}
		}
		if err := f.Client.Create(ctx, class); err != nil {
			return err
		}
	}
	yes, no := true, false
	return f.Client.Create(ctx, &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: CapacityProvisioner},
		Spec:       storagev1.CSIDriverSpec{StorageCapacity: &yes, AttachRequired: &no},
	})
}

// Provision runs the fastest possible provisioner until the context ends. As soon as a claim has a node it makes its
// PersistentVolume, with one write, in a process that does nothing else. It calls failed with each error.
func (f *Fleet) Provision(ctx context.Context, failed func(error)) error {
	factory := informers.NewSharedInformerFactory(f.Clientset, 0)
	var made sync.Map
	provision := func(obj any) {
		pvc, ok := obj.(*corev1.PersistentVolumeClaim)
		if !ok || pvc.Spec.VolumeName != "" || pvc.Annotations[annotationSelectedNode] == "" || pvc.Spec.StorageClassName == nil {
			return
		}
		driver := *pvc.Spec.StorageClassName
		if driver != StubProvisioner && driver != CapacityProvisioner {
			return
		}
		if _, twice := made.LoadOrStore(pvc.UID, nil); twice {
			return
		}
		go func() {
			_, err := f.Clientset.CoreV1().PersistentVolumes().Create(ctx, stubVolume(pvc, driver), metav1.CreateOptions{})
			if err != nil && ctx.Err() == nil {
				failed(fmt.Errorf("the stub provisioner: %w", err))
			}
		}()
	}
	_, err := factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: provision, UpdateFunc: func(_, obj any) { provision(obj) },
	})
	if err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
	return ctx.Err()
}

// stubVolume is the PersistentVolume that external-provisioner would make.
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

// ClaimsReviewed returns an error until kube-controller-manager has begun to sync the claims of a namespace again after
// its pods were created. It does so every 15 seconds, and then writes an event about each claim. In some runs these
// events would come during the measurement, in others before.
func (f *Fleet) ClaimsReviewed(ctx context.Context, namespace string) error {
	events, err := f.Clientset.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.kind=PersistentVolumeClaim,reason=WaitForPodScheduled", Limit: 1,
	})
	if err != nil {
		return err
	}
	if len(events.Items) == 0 {
		return fmt.Errorf("kube-controller-manager has said of no claim in namespace %s that its pod is to be scheduled", namespace)
	}
	return nil
}

// PublishCapacity makes one CSIStorageCapacity a node, like external-provisioner.
func (f *Fleet) PublishCapacity(ctx context.Context, nodes int) error {
	free := resource.MustParse("1Ti")
	return Parallel(ctx, nodes, func(ctx context.Context, i int) error {
		_, err := f.Clientset.StorageV1().CSIStorageCapacities(metav1.NamespaceSystem).Create(ctx, &storagev1.CSIStorageCapacity{
			ObjectMeta:       metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "capacity-" + NodeName(i)},
			NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: NodeName(i)}},
			StorageClassName: CapacityProvisioner,
			Capacity:         &free, MaximumVolumeSize: &free,
		}, metav1.CreateOptions{})
		return err
	})
}

// WithdrawCapacity deletes them, so that other schedulers need not cache them.
func (f *Fleet) WithdrawCapacity(ctx context.Context) error {
	return f.deleteAll(ctx, &storagev1.CSIStorageCapacity{}, client.InNamespace(metav1.NamespaceSystem))
}

// RemoveVolumes deletes all claims of the namespace, and all PersistentVolumes. It removes their finalizers like agents
// do after a wipe.
func (f *Fleet) RemoveVolumes(ctx context.Context, namespace string) error {
	if err := f.deleteAll(ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(namespace)); err != nil {
		return err
	}
	if err := f.deleteAll(ctx, &corev1.PersistentVolume{}); err != nil {
		return err
	}
	for {
		claims, volumes := &corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}
		if err := f.Client.List(ctx, claims, client.InNamespace(namespace)); err != nil {
			return err
		}
		if err := f.Client.List(ctx, volumes); err != nil {
			return err
		}
		if len(claims.Items)+len(volumes.Items) == 0 {
			return nil
		}
		err := Parallel(ctx, len(claims.Items), func(ctx context.Context, i int) error { return f.letGo(ctx, &claims.Items[i]) })
		if err != nil {
			return err
		}
		err = Parallel(ctx, len(volumes.Items), func(ctx context.Context, i int) error { return f.letGo(ctx, &volumes.Items[i]) })
		if err != nil {
			return err
		}
	}
}

// letGo removes the finalizers of an object.
func (f *Fleet) letGo(ctx context.Context, object client.Object) error {
	err := f.Client.Patch(ctx, object, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
