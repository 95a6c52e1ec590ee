package diskcapacity

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// claims reads the claims that pods refer to.
type claims struct {
	claims  corelisters.PersistentVolumeClaimLister
	classes storagelisters.StorageClassLister
}

// asked is a pod's request: its inline volumes, and its claims of our StorageClasses that have no volume yet. A claim
// that is bound, or is to be bound to a certain volume, requests nothing here: the stock plugins know where its volume
// is.
type asked struct {
	// volumes are to be placed, all or none.
	volumes []request.Volume
	// held are claims whose volume has its place, although they are not bound.
	held []held
	// notMade are claims that can only be bound to an existing PersistentVolume without a claim, by volume ID.
	notMade map[string]error
	// claims are the claims of volumes, and those in notMade, by volume ID.
	claims map[string]*corev1.PersistentVolumeClaim
	// settled is true when another claim of the pod limits the nodes that it can run on.
	settled bool
}

// held is a claim whose volume has a place. Its PersistentVolume was made and the claim does not name it yet, or
// another pod that shares it is being bound.
type held struct {
	request.Volume
	node string
}

func (a *asked) none() bool { return len(a.volumes) == 0 && len(a.held) == 0 && len(a.notMade) == 0 }

// requests are those of the volumes, with the room that must be free behind them.
func (a *asked) requests() []placement.Request { return requestsOf(a.volumes) }

// ask reads a pod's request. The error says what is wrong with the pod, a claim, or its StorageClass, and what to do.
// No node could take such a pod.
func (f *feed) ask(pod *corev1.Pod) (asked, error) {
	inline, err := request.FromPod(pod)
	if err != nil {
		return asked{}, err
	}
	for i := range inline {
		if err := f.applyClass(&inline[i].Request); err != nil {
			return asked{}, fmt.Errorf("volume %q: %w", inline[i].Name, err)
		}
	}
	a := asked{volumes: inline}
	for i := range pod.Spec.Volumes {
		name := claimName(pod, &pod.Spec.Volumes[i])
		if name == "" {
			continue
		}
		if err := f.askFor(&a, pod, &pod.Spec.Volumes[i]); err != nil {
			return asked{}, fmt.Errorf("claim %s/%s: %w", pod.Namespace, name, err)
		}
	}
	if len(a.volumes)+len(a.held) > diskv1alpha1.MaxVolumes {
		return asked{}, fmt.Errorf("the pod has %d volumes of %s, at most %d are possible", len(a.volumes)+len(a.held), diskv1alpha1.DriverName, diskv1alpha1.MaxVolumes)
	}
	return a, nil
}

// askFor adds a claim to the request. Errors of claims that are not ours are left to the stock plugins.
func (f *feed) askFor(a *asked, pod *corev1.Pod, v *corev1.Volume) error {
	pvc := f.claims.of(pod, v)
	var class *storagev1.StorageClass
	if pvc != nil && pvc.Spec.VolumeName == "" && pvc.DeletionTimestamp == nil {
		class = f.claims.ours(pvc)
	}
	if class == nil {
		a.settled = true
		return nil
	}
	if !claim.WaitsForFirstConsumer(class) {
		return fmt.Errorf("it is not bound yet: StorageClass %s has volumeBindingMode %s, so that its volume is placed without its pod; the events of the claim say where", class.Name, storagev1.VolumeBindingImmediate)
	}
	wanted, err := claim.Request(pvc, class)
	var notMade *claim.NotProvisionedError
	if err != nil && (!errors.As(err, &notMade) || !f.bindable.has(claim.ClassName(pvc))) {
		return err
	}
	if _, twice := a.claims[wanted.ID]; twice {
		return nil
	}
	if a.claims == nil {
		a.claims = map[string]*corev1.PersistentVolumeClaim{}
	}
	a.claims[wanted.ID] = pvc
	if notMade != nil {
		if a.notMade == nil {
			a.notMade = map[string]error{}
		}
		a.notMade[wanted.ID], a.settled = notMade, true
		return nil
	}
	if _, selected := pvc.Annotations[volume.AnnSelectedNode]; selected || len(class.AllowedTopologies) > 0 {
		a.settled = true
	}
	if node, _, ok := f.ledger.Where(wanted.Partition); ok {
		a.held = append(a.held, held{wanted, node})
		return nil
	}
	if err := f.applyClass(&wanted.Request); err != nil {
		return fmt.Errorf("StorageClass %s: %w", class.Name, err)
	}
	a.volumes = append(a.volumes, wanted)
	return nil
}

// of returns the claim that a volume of the pod refers to. It returns nil if the volume has none, if the claim does not
// exist, or if an ephemeral volume's claim is not the pod's own.
func (c *claims) of(pod *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolumeClaim {
	name := claimName(pod, v)
	if name == "" {
		return nil
	}
	pvc, err := c.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
	if err != nil || v.Ephemeral != nil && ephemeral.VolumeIsForPod(pod, pvc) != nil {
		return nil
	}
	return pvc
}

// ours returns the claim's StorageClass if it is of our provisioner, else nil.
func (c *claims) ours(pvc *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	return claim.OurClass(c.classes, pvc)
}

// maxClasses is how many classes a message names.
const maxClasses = 8

// applyClass adds to a request what its DiskClass says now. It returns an error if there is no such class, because
// disks can have the name of a class that no longer exists.
func (f *feed) applyClass(r *placement.Request) error {
	class := r.Class
	if policy, ok := f.classes.policy(class); ok {
		r.Policy = policy
		return nil
	}
	names := f.classes.names()
	if len(names) == 0 {
		return fmt.Errorf("DiskClass %.64q does not exist: there is no DiskClass at all, create one", class)
	}
	if more := len(names) - maxClasses; more > 0 {
		names = append(names[:maxClasses], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("DiskClass %.64q does not exist: there are %s", class, strings.Join(names, ", "))
}

// claimName returns the name of the claim that a volume of the pod refers to; empty if none.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	}
	return ""
}

// refersTo reports whether the pod has a volume of that claim.
func refersTo(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) bool {
	return pod.Namespace == pvc.Namespace && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return claimName(pod, &v) == pvc.Name
	})
}

// hasClaims reports whether the pod has claims, of any driver.
func hasClaims(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil || v.Ephemeral != nil
	})
}

// mayHold reports whether the ledger may have records of the pod.
func mayHold(pod *corev1.Pod) bool { return hasInlineVolumes(pod) || hasClaims(pod) }

// hasOpenClaims reports whether the pod has an unbound claim of ours, or one that does not exist yet.
func (f *feed) hasOpenClaims(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if claimName(pod, v) == "" {
			continue
		}
		pvc := f.claims.of(pod, v)
		if pvc == nil || pvc.Spec.VolumeName == "" && f.claims.ours(pvc) != nil {
			return true
		}
	}
	return false
}

// ephemeralPartitions returns the partitions of the volumes that end with a pod: inline ones, and those of its generic
// ephemeral claims. Other claims outlive the pod.
func (f *feed) ephemeralPartitions(pod *corev1.Pod) []string {
	var partitions []string
	if volumes, err := request.FromPod(pod); err == nil {
		for i := range volumes {
			partitions = append(partitions, volumes[i].Partition)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil {
			continue
		}
		pvc := f.claims.of(pod, v)
		if pvc == nil {
			continue
		}
		if pvc.Spec.VolumeName == "" {
			if f.claims.ours(pvc) != nil {
				partitions = append(partitions, diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(pvc.UID)))
			}
			continue
		}
		pv := f.storedVolume(pvc.Spec.VolumeName)
		if pv != nil && claim.IsOurs(pv) && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			partitions = append(partitions, diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
		}
	}
	return partitions
}
