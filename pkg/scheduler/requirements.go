package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/component-base/featuregate"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/features"
)

// requirement is a resource that the scheduler watches. Its informers wait for it for ever, and no pod is scheduled
// until it is served.
type requirement struct {
	groupVersion, resource string
	// servedBy are the versions of Kubernetes that serve it; empty if all supported ones do.
	servedBy string
}

func (r requirement) String() string {
	if r.servedBy == "" {
		return r.resource + " of " + r.groupVersion
	}
	return r.resource + " of " + r.groupVersion + " (Kubernetes " + r.servedBy + ")"
}

// requirements returns all requirements under these feature gates. Berth's own objects are not among them: without them
// other pods are scheduled, and the plugin logs what to install.
func requirements(enabled func(featuregate.Feature) bool) []requirement {
	needed := []requirement{
		{groupVersion: "v1", resource: "nodes"},
		{groupVersion: "v1", resource: "pods"},
		{groupVersion: "policy/v1", resource: "poddisruptionbudgets"},
		{groupVersion: "storage.k8s.io/v1", resource: "csidrivers"},
		{groupVersion: "storage.k8s.io/v1", resource: "csinodes"},
		{groupVersion: "storage.k8s.io/v1", resource: "csistoragecapacities"},
		{groupVersion: "storage.k8s.io/v1", resource: "volumeattachments"},
	}
	if enabled(features.DynamicResourceAllocation) {
		for _, resource := range []string{"deviceclasses", "resourceclaims", "resourceslices"} {
			needed = append(needed, requirement{"resource.k8s.io/v1", resource, "1.34 or later"})
		}
	}
	if enabled(features.GenericWorkload) {
		needed = append(needed, requirement{"scheduling.k8s.io/v1alpha2", "podgroups", "1.36 only"})
	}
	return needed
}

// missingResources returns the resources that the API server does not serve. It returns an error if they cannot be
// read.
func missingResources(served discovery.ServerResourcesInterface, needed []requirement) ([]requirement, error) {
	var out []requirement
	lists := map[string]*metav1.APIResourceList{}
	for _, r := range needed {
		list, known := lists[r.groupVersion]
		if !known {
			var err error
			if list, err = served.ServerResourcesForGroupVersion(r.groupVersion); err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("reading which resources of %s there are: %w", r.groupVersion, err)
			}
			lists[r.groupVersion] = list
		}
		if list == nil || !slices.ContainsFunc(list.APIResources, func(have metav1.APIResource) bool { return have.Name == r.resource }) {
			out = append(out, r)
		}
	}
	return out, nil
}

// errMissing is the error with which the program ends.
var errMissing = errors.New("the API server does not serve what this scheduler needs")

// checkServer returns an error if the API server lacks a resource, and nil if it serves all. If they cannot be read, it
// tries again after each pause, until the context ends.
func checkServer(ctx context.Context, served discovery.ServerResourcesInterface, needed []requirement, pauses <-chan time.Time) error {
	for {
		lacking, err := missingResources(served, needed)
		switch {
		case err != nil:
			klog.FromContext(ctx).V(2).Info("The API server does not say what it serves, it is asked again", "err", err)
		case len(lacking) == 0:
			return nil
		default:
			names := make([]string, len(lacking))
			for i, r := range lacking {
				names[i] = r.String()
			}
			return fmt.Errorf("%w: %s; use an API server that does, or switch off the feature gate that needs it", errMissing, strings.Join(names, ", "))
		}
		select {
		case <-pauses:
		case <-ctx.Done():
			return nil
		}
	}
}
