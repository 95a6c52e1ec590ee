package diskcapacity

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
)

// classes are the policies of the DiskClasses there are, by name: where their reflector puts
// them.
type classes struct {
	filled atomic.Bool
	mu     sync.RWMutex
	known  map[string]placement.Policy
	// appeared is called when there may be one more.
	appeared func()
}

func newClasses() *classes {
	return &classes{known: map[string]placement.Policy{}, appeared: func() {}}
}

func (c *classes) hasSynced() bool { return c.filled.Load() }

// policy is that of a class; false if there is no such class.
func (c *classes) policy(name string) (placement.Policy, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	policy, ok := c.known[name]
	return policy, ok
}

func (c *classes) names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.known))
}

// Add implements cache.ReflectorStore.
func (c *classes) Add(obj any) error {
	class, ok := obj.(*diskv1alpha1.DiskClass)
	if !ok {
		return fmt.Errorf("got %T, want *DiskClass", obj)
	}
	c.mu.Lock()
	_, known := c.known[class.Name]
	c.known[class.Name] = request.PolicyOf(class.Spec.PlacementPolicy)
	c.mu.Unlock()
	if !known {
		c.appeared()
	}
	return nil
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
	defer c.mu.Unlock()
	delete(c.known, class.Name)
	return nil
}

// Replace implements cache.ReflectorStore.
func (c *classes) Replace(objects []any, _ string) error {
	known := make(map[string]placement.Policy, len(objects))
	for _, obj := range objects {
		class, ok := obj.(*diskv1alpha1.DiskClass)
		if !ok {
			return fmt.Errorf("got %T, want *DiskClass", obj)
		}
		known[class.Name] = request.PolicyOf(class.Spec.PlacementPolicy)
	}
	c.mu.Lock()
	c.known = known
	c.mu.Unlock()
	c.filled.Store(true)
	c.appeared()
	return nil
}

// Resync implements cache.ReflectorStore.
func (c *classes) Resync() error { return nil }
