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
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// claimReader reads the claims that pods refer to.
type claimReader struct {
	pvcs    corelisters.PersistentVolumeClaimLister
	classes storagelisters.StorageClassLister
}

// podRequest is what a pod requests: its inline volumes, and its claims of our StorageClasses that have no volume yet.
// A claim that is bound, or is to be bound to a certain volume, requests nothing here: the stock plugins know where its
// volume is.
type podRequest struct {
	// volumes are to be placed, all or none.
	volumes []request.Volume
	// placedClaims are claims whose volume has its place, although they are not bound.
	placedClaims []placedClaim
	// existingOnly are claims that can only be bound to an existing PersistentVolume without a claim, by volume ID.
	existingOnly map[string]error
	// claims are the claims of volumes, and those in existingOnly, by volume ID.
	claims map[string]*corev1.PersistentVolumeClaim
	// limitedByClaims is true when another claim of the pod limits the nodes that it can run on.
	limitedByClaims bool
}

// placedClaim is a claim whose volume has a place. Its PersistentVolume was made and the claim does not name it yet, or
// another pod that shares it is being bound.
type placedClaim struct {
	request.Volume
	node string
}

func (r *podRequest) isEmpty() bool {
	return len(r.volumes) == 0 && len(r.placedClaims) == 0 && len(r.existingOnly) == 0
}

// requests are those of the volumes, with their headroom.
func (r *podRequest) requests() []placement.Request { return requestsOf(r.volumes) }

// requestsOf are the requests to placement for the volumes, with the headroom that they need.
func requestsOf(volumes []request.Volume) []placement.Request {
	requests := make([]placement.Request, len(volumes))
	for i := range volumes {
		want := ledger.VolumeRequest{Request: volumes[i].Request, Headroom: volumes[i].Headroom}
		requests[i] = want.WithHeadroom()
	}
	return requests
}

// VolumeRequestOf is what the ledger needs to know about a volume.
func VolumeRequestOf(v *request.Volume) ledger.VolumeRequest {
	return ledger.VolumeRequest{
		Partition: v.Partition, Pieces: piecesOf(v), Request: v.Request, Headroom: v.Headroom, Persistent: v.Claim != "",
	}
}

// piecesOf are the GUIDs of the further pieces that a volume may have. Only the volumes of claims have any.
func piecesOf(v *request.Volume) []string {
	if v.Claim == "" {
		return nil
	}
	return diskv1alpha1.PieceIDs(v.Partition)
}

// requestOf reads a pod's request. The error says what is wrong with the pod, a claim, or its StorageClass, and what to
// do. No node could take such a pod.
func (f *feed) requestOf(pod *corev1.Pod) (podRequest, error) {
	inline, err := request.FromPod(pod)
	if err != nil {
		return podRequest{}, err
	}
	for i := range inline {
		if err := f.applyClass(&inline[i].Request); err != nil {
			return podRequest{}, fmt.Errorf("volume %q: %w", inline[i].Name, err)
		}
	}
	a := podRequest{volumes: inline}
	for i := range pod.Spec.Volumes {
		name := claim.NameIn(pod, &pod.Spec.Volumes[i])
		if name == "" {
			continue
		}
		if err := f.addClaim(&a, pod, &pod.Spec.Volumes[i]); err != nil {
			return podRequest{}, fmt.Errorf("claim %s/%s: %w", pod.Namespace, name, err)
		}
	}
	if len(a.volumes)+len(a.placedClaims) > diskv1alpha1.MaxVolumes {
		return podRequest{}, fmt.Errorf("the pod has %d volumes of %s, at most %d are possible", len(a.volumes)+len(a.placedClaims), diskv1alpha1.DriverName, diskv1alpha1.MaxVolumes)
	}
	return a, nil
}

// addClaim adds a claim to the request. Errors of claims that are not ours are left to the stock plugins.
func (f *feed) addClaim(into *podRequest, pod *corev1.Pod, v *corev1.Volume) error {
	pvc := f.claims.of(pod, v)
	var class *storagev1.StorageClass
	if pvc != nil && pvc.Spec.VolumeName == "" && pvc.DeletionTimestamp == nil {
		class = f.claims.ourClass(pvc)
	}
	if class == nil {
		into.limitedByClaims = true
		return nil
	}
	if !claim.WaitsForFirstConsumer(class) {
		return fmt.Errorf("it is not bound yet: StorageClass %s has volumeBindingMode %s, so that its volume is placed without its pod; the events of the claim say where", class.Name, storagev1.VolumeBindingImmediate)
	}
	wanted, err := claim.Request(pvc, class)
	var notMade *claim.NotProvisionedError
	if err != nil && (!errors.As(err, &notMade) || !f.bindableVolumes.has(claim.ClassName(pvc))) {
		return err
	}
	if _, twice := into.claims[wanted.ID]; twice {
		return nil
	}
	if into.claims == nil {
		into.claims = map[string]*corev1.PersistentVolumeClaim{}
	}
	into.claims[wanted.ID] = pvc
	if notMade != nil {
		if into.existingOnly == nil {
			into.existingOnly = map[string]error{}
		}
		into.existingOnly[wanted.ID], into.limitedByClaims = notMade, true
		return nil
	}
	if _, selected := pvc.Annotations[volume.AnnSelectedNode]; selected || len(class.AllowedTopologies) > 0 {
		into.limitedByClaims = true
	}
	if node, _, ok := f.ledger.Where(wanted.Partition); ok {
		into.placedClaims = append(into.placedClaims, placedClaim{wanted, node})
		return nil
	}
	if err := f.applyClaimClass(&wanted.Request); err != nil {
		return fmt.Errorf("StorageClass %s: %w", class.Name, err)
	}
	into.volumes = append(into.volumes, wanted)
	return nil
}

// of returns the claim that a volume of the pod refers to. It returns nil if the volume has none, if the claim does not
// exist, or if an ephemeral volume's claim is not the pod's own.
func (c *claimReader) of(pod *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolumeClaim {
	name := claim.NameIn(pod, v)
	if name == "" {
		return nil
	}
	pvc, err := c.pvcs.PersistentVolumeClaims(pod.Namespace).Get(name)
	if err != nil || v.Ephemeral != nil && ephemeral.VolumeIsForPod(pod, pvc) != nil {
		return nil
	}
	return pvc
}

// ourClass returns the claim's StorageClass if it is of our provisioner, else nil.
func (c *claimReader) ourClass(pvc *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	return claim.OurClass(c.classes, pvc)
}

// maxNamedClasses is how many classes a message names.
const maxNamedClasses = 8

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
	if more := len(names) - maxNamedClasses; more > 0 {
		names = append(names[:maxNamedClasses], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("DiskClass %.64q does not exist: there are %s", class, strings.Join(names, ", "))
}

// applyClaimClass is applyClass for the volume of a claim, which may have several pieces.
func (f *feed) applyClaimClass(r *placement.Request) error {
	if err := f.applyClass(r); err != nil {
		return err
	}
	r.MaxPieces = f.classes.piecesWhenPlaced(r.Class)
	return nil
}

// usesClaim reports whether the pod has a volume of that claim.
func usesClaim(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) bool {
	return pod.Namespace == pvc.Namespace && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return claim.NameIn(pod, &v) == pvc.Name
	})
}

// hasClaims reports whether the pod has claims, of any driver.
func hasClaims(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil || v.Ephemeral != nil
	})
}

// hasInlineVolumes reports whether the pod has an inline volume of ours, well-formed or not.
func hasInlineVolumes(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if csi := pod.Spec.Volumes[i].CSI; csi != nil && csi.Driver == diskv1alpha1.DriverName {
			return true
		}
	}
	return false
}

// mayHoldSpace reports whether the ledger may have records of the pod.
func mayHoldSpace(pod *corev1.Pod) bool { return hasInlineVolumes(pod) || hasClaims(pod) }

// hasUnboundClaims reports whether the pod has an unbound claim of ours, or one that does not exist yet.
func (f *feed) hasUnboundClaims(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if claim.NameIn(pod, v) == "" {
			continue
		}
		pvc := f.claims.of(pod, v)
		if pvc == nil || pvc.Spec.VolumeName == "" && f.claims.ourClass(pvc) != nil {
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
			if f.claims.ourClass(pvc) != nil {
				partitions = appendPieces(partitions, diskv1alpha1.ClaimVolumeID(pvc.UID))
			}
			continue
		}
		pv := f.storedVolume(pvc.Spec.VolumeName)
		if pv != nil && claim.IsOurs(pv) && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			partitions = appendPieces(partitions, pv.Spec.CSI.VolumeHandle)
		}
	}
	return partitions
}

// appendPieces appends the partitions of all pieces that the volume of a claim can have.
func appendPieces(partitions []string, volumeID string) []string {
	first := diskv1alpha1.PartitionID(volumeID)
	return append(append(partitions, first), diskv1alpha1.PieceIDs(first)...)
}
