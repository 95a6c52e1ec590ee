package whatif

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
)

// likeSuffix ends the names and UIDs of the objects that Like makes. No object of the API has such a name.
const likeSuffix = "/like"

// Like returns a pod like one that exists, with new volumes. It adds the claims that the new pod needs to the objects.
// Claims of other drivers are shared by both.
func (o *Objects) Like(pod *corev1.Pod) (*corev1.Pod, error) {
	like := pod.DeepCopy()
	like.Name, like.UID = pod.Name+likeSuffix, pod.UID+likeSuffix
	like.Spec.NodeName, like.Status, like.DeletionTimestamp = "", corev1.PodStatus{Phase: corev1.PodPending}, nil
	delete(like.Annotations, diskv1alpha1.AnnotationAllocation)
	for i := range like.Spec.Volumes {
		v := &like.Spec.Volumes[i]
		name := claim.NameIn(pod, v)
		if name == "" {
			continue
		}
		copied, err := o.likeClaim(pod.Namespace, name)
		if err != nil {
			return nil, err
		}
		v.VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: copied}}
	}
	return like, nil
}

// likeClaim adds an unbound claim like that one, and returns its name. For a claim of another driver it returns the
// claim's own name.
func (o *Objects) likeClaim(namespace, name string) (string, error) {
	for i := range o.Claims {
		c := &o.Claims[i]
		if c.Namespace != namespace || c.Name != name {
			continue
		}
		if !o.isOurs(claim.ClassName(c)) {
			return name, nil
		}
		like := c.DeepCopy()
		like.Name, like.UID = name+likeSuffix, c.UID+types.UID(likeSuffix)
		like.Spec.VolumeName, like.Annotations, like.DeletionTimestamp = "", nil, nil
		class := claim.ClassName(c)
		like.Spec.StorageClassName = &class
		o.Claims = append(o.Claims, *like)
		return like.Name, nil
	}
	return "", fmt.Errorf("there is no claim %s/%s", namespace, name)
}

func (o *Objects) isOurs(class string) bool {
	for i := range o.StorageClasses {
		if o.StorageClasses[i].Name == class {
			return o.StorageClasses[i].Provisioner == diskv1alpha1.DriverName
		}
	}
	return false
}
