package diskcapacity

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// classes is the store of the reflector of DiskClasses: it has their policies, by name.
type classes struct {
	listed   atomic.Bool
	mu       sync.RWMutex
	policies map[string]placement.Policy
	// objects are the classes as they were read last.
	objects map[string]*diskv1alpha1.DiskClass
	// listeners are called after each change.
	listeners []func()
	// appeared is called when there may be a new class.
	appeared func()
	// allowedMore is called when volumes of a class may have more pieces than before when they are placed.
	allowedMore func(class string)
}

func newClasses() *classes {
	return &classes{policies: map[string]placement.Policy{}, objects: map[string]*diskv1alpha1.DiskClass{}, appeared: func() {}, allowedMore: func(string) {}}
}

func (c *classes) hasSynced() bool { return c.listed.Load() }

// policy returns the policy of a class; false if there is no such class.
func (c *classes) policy(name string) (placement.Policy, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	policy, ok := c.policies[name]
	return policy, ok
}

// maxPieces is of how many pieces volumes of a class consist at most; 1 if there is no such class.
func (c *classes) maxPieces(name string) int {
	class := c.get(name)
	if class == nil {
		return 1
	}
	return class.Spec.PiecesAllowed()
}

// piecesWhenPlaced is of how many pieces a new volume of a claim consists at most; 1 if there is no such class.
func (c *classes) piecesWhenPlaced(name string) int {
	if class := c.get(name); class != nil {
		return class.Spec.PiecesWhenPlaced()
	}
	return 1
}

// get returns the class as it was read last, or nil. It must not be changed.
func (c *classes) get(name string) *diskv1alpha1.DiskClass {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.objects[name]
}

// releasesAfter is how long a node must be gone before its volumes of a class are released; false if they are kept.
func (c *classes) releasesAfter(name string) (after time.Duration, ok bool) {
	if class := c.get(name); class != nil {
		return class.Spec.ReleasesAfter()
	}
	return 0, false
}

func (c *classes) names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.policies))
}

// all returns the classes as they were read last, sorted by name. They must not be changed.
func (c *classes) all() []*diskv1alpha1.DiskClass {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]*diskv1alpha1.DiskClass, 0, len(c.objects))
	for _, name := range slices.Sorted(maps.Keys(c.objects)) {
		out = append(out, c.objects[name])
	}
	return out
}

func (c *classes) addListener(callback func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, callback)
}

func (c *classes) changed() {
	c.mu.RLock()
	listeners := c.listeners
	c.mu.RUnlock()
	for _, callback := range listeners {
		callback()
	}
}

// Add implements cache.ReflectorStore.
func (c *classes) Add(obj any) error {
	class, ok := obj.(*diskv1alpha1.DiskClass)
	if !ok {
		return fmt.Errorf("got %T, want *DiskClass", obj)
	}
	c.mu.Lock()
	_, known := c.policies[class.Name]
	allowsMore := c.allowsMore(class)
	c.policies[class.Name] = request.PolicyOf(class.Spec.PlacementPolicy)
	c.objects[class.Name] = class
	c.mu.Unlock()
	defer c.changed()
	if !known {
		c.appeared()
	}
	if allowsMore {
		c.allowedMore(class.Name)
	}
	return nil
}

// allowsMore reports whether new volumes of the class may have more pieces than by the class as it was read before. The
// lock is held.
func (c *classes) allowsMore(class *diskv1alpha1.DiskClass) bool {
	before := c.objects[class.Name]
	return before != nil && before.Spec.PiecesWhenPlaced() < class.Spec.PiecesWhenPlaced()
}

// Update implements cache.ReflectorStore.
func (c *classes) Update(obj any) error { return c.Add(obj) }

// Delete implements cache.ReflectorStore.
func (c *classes) Delete(obj any) error {
	class, ok := obj.(*diskv1alpha1.DiskClass)
	if !ok {
		return fmt.Errorf("got %T, want *DiskClass", obj)
	}
	c.mu.Lock()
	defer c.changed()
	defer c.mu.Unlock()
	delete(c.policies, class.Name)
	delete(c.objects, class.Name)
	return nil
}

// Replace implements cache.ReflectorStore.
func (c *classes) Replace(objects []any, _ string) error {
	known := make(map[string]placement.Policy, len(objects))
	byName := make(map[string]*diskv1alpha1.DiskClass, len(objects))
	for _, obj := range objects {
		class, ok := obj.(*diskv1alpha1.DiskClass)
		if !ok {
			return fmt.Errorf("got %T, want *DiskClass", obj)
		}
		known[class.Name] = request.PolicyOf(class.Spec.PlacementPolicy)
		byName[class.Name] = class
	}
	var allowMore []string
	c.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if c.allowsMore(byName[name]) {
			allowMore = append(allowMore, name)
		}
	}
	c.policies, c.objects = known, byName
	c.mu.Unlock()
	defer c.changed()
	c.listed.Store(true)
	c.appeared()
	for _, name := range allowMore {
		c.allowedMore(name)
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (c *classes) Resync() error { return nil }
