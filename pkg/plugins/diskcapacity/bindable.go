package diskcapacity

import (
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/volume"

	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/request"
)

// bindableVolumes are the PersistentVolumes without a claim, such as a retained volume that was released to be bound
// again. The stock VolumeBinding binds a claim to one of them where it can, and then the claim requests no space. There
// are hardly ever any, and then all of this costs nothing.
type bindableVolumes struct {
	mu sync.RWMutex
	// byClass has them by StorageClass and name. The inner maps are never changed.
	byClass map[string]map[string]*corev1.PersistentVolume
}

func newBindableVolumes() *bindableVolumes {
	return &bindableVolumes{byClass: map[string]map[string]*corev1.PersistentVolume{}}
}

// isBindable reports whether a claim can still be bound to the volume. An operator may name that claim in it, and
// cannot know its UID.
func isBindable(pv *corev1.PersistentVolume) bool {
	return pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == ""
}

// set folds in the present state of a PersistentVolume.
func (b *bindableVolumes) set(pv *corev1.PersistentVolume) {
	class := volume.GetPersistentVolumeClass(pv)
	if !isBindable(pv) || pv.DeletionTimestamp != nil || class == "" {
		b.remove(pv)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	of := maps.Clone(b.byClass[class])
	if of == nil {
		of = map[string]*corev1.PersistentVolume{}
	}
	of[pv.Name] = pv
	b.byClass[class] = of
}

// remove folds in that a PersistentVolume is gone, or has a claim.
func (b *bindableVolumes) remove(pv *corev1.PersistentVolume) {
	class := volume.GetPersistentVolumeClass(pv)
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, there := b.byClass[class][pv.Name]; !there {
		return
	}
	if len(b.byClass[class]) == 1 {
		delete(b.byClass, class)
		return
	}
	of := maps.Clone(b.byClass[class])
	delete(of, pv.Name)
	b.byClass[class] = of
}

// has reports whether there are any of the StorageClass.
func (b *bindableVolumes) has(class string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.byClass[class]) > 0
}

// of returns those that one of the claims may be bound to, by StorageClass; nil if none.
func (b *bindableVolumes) of(claims map[string]*corev1.PersistentVolumeClaim) map[string][]*corev1.PersistentVolume {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if len(b.byClass) == 0 {
		return nil
	}
	var found map[string][]*corev1.PersistentVolume
	for _, pvc := range claims {
		class := claim.ClassName(pvc)
		of := b.byClass[class]
		if len(of) == 0 || found[class] != nil {
			continue
		}
		if found == nil {
			found = map[string][]*corev1.PersistentVolume{}
		}
		for _, name := range slices.Sorted(maps.Keys(of)) {
			found[class] = append(found[class], of[name])
		}
	}
	return found
}

// volumesToPlaceOn returns the volumes that are to be placed if the pod goes to the node. Claims that the stock plugin
// would bind there to a bindable PersistentVolume are left out, as its findMatchingVolumes decides.
func (s *state) volumesToPlaceOn(node *corev1.Node) []request.Volume {
	if len(s.bindable) == 0 {
		return s.volumes
	}
	found := s.claimsBoundOn(node)
	if len(found) == 0 {
		return s.volumes
	}
	return slices.DeleteFunc(slices.Clone(s.volumes), func(v request.Volume) bool { return found[v.Claim] })
}

// claimsBoundOn returns the claims, as namespace/name, that the stock plugin would bind to a bindable PersistentVolume
// on the node.
func (s *state) claimsBoundOn(node *corev1.Node) map[string]bool {
	claims := slices.SortedFunc(maps.Values(s.claims), func(a, b *corev1.PersistentVolumeClaim) int {
		x, y := a.Spec.Resources.Requests[corev1.ResourceStorage], b.Spec.Resources.Requests[corev1.ResourceStorage]
		if order := x.Cmp(y); order != 0 {
			return order
		}
		return strings.Compare(a.Name, b.Name)
	})
	chosen, found := map[string]*corev1.PersistentVolume{}, map[string]bool{}
	for _, pvc := range claims {
		if _, selected := pvc.Annotations[volume.AnnSelectedNode]; selected {
			continue
		}
		pv, err := volume.FindMatchingVolume(pvc, s.bindable[claim.ClassName(pvc)], node, chosen, true, true)
		if err == nil && pv != nil {
			chosen[pv.Name] = pv
			found[pvc.Namespace+"/"+pvc.Name] = true
		}
	}
	return found
}
