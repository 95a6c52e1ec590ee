package scheduler

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/component-base/featuregate"
)

// someServer serves resources by group version.
type someServer struct {
	discovery.ServerResourcesInterface
	serves map[string][]string
	// failures is how many requests fail first.
	failures int
}

func (s *someServer) ServerResourcesForGroupVersion(groupVersion string) (*metav1.APIResourceList, error) {
	if s.failures > 0 {
		s.failures--
		return nil, errors.New("connection refused")
	}
	names, ok := s.serves[groupVersion]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, groupVersion)
	}
	list := &metav1.APIResourceList{GroupVersion: groupVersion}
	for _, name := range names {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name})
	}
	return list, nil
}

func everything() map[string][]string {
	all := map[string][]string{}
	for _, r := range requirements(func(featuregate.Feature) bool { return true }) {
		all[r.groupVersion] = append(all[r.groupVersion], r.resource)
	}
	return all
}

// TestRequirements asserts that the error names what the API server lacks, and that the check is repeated for a server
// that does not answer yet.
func TestRequirements(t *testing.T) {
	on, off := func(featuregate.Feature) bool { return true }, func(featuregate.Feature) bool { return false }
	without := func(groupVersion string, resources ...string) map[string][]string {
		all := everything()
		if delete(all, groupVersion); len(resources) > 0 {
			all[groupVersion] = resources
		}
		return all
	}
	for name, test := range map[string]struct {
		serves   map[string][]string
		enabled  func(featuregate.Feature) bool
		failures int
		says     []string // none if all is well
	}{
		"all there is":             {everything(), on, 0, nil},
		"no answer at first":       {everything(), on, 3, nil},
		"1.33":                     {without("resource.k8s.io/v1"), on, 0, []string{"deviceclasses of resource.k8s.io/v1 (Kubernetes 1.34 or later)", "resourceslices of resource.k8s.io/v1"}},
		"1.33, and it comes late":  {without("resource.k8s.io/v1"), on, 3, []string{"resourceclaims of resource.k8s.io/v1"}},
		"1.33, without the gate":   {without("resource.k8s.io/v1"), off, 0, nil},
		"a part of a group":        {without("storage.k8s.io/v1", "csidrivers", "csinodes", "volumeattachments"), on, 0, []string{"csistoragecapacities of storage.k8s.io/v1"}},
		"no disruption budgets":    {without("policy/v1"), off, 0, []string{"poddisruptionbudgets of policy/v1"}},
		"an empty group of ours":   {without("v1", "pods"), on, 0, []string{"nodes of v1"}},
		"pod groups, not served":   {without("scheduling.k8s.io/v1alpha2"), on, 0, []string{"podgroups of scheduling.k8s.io/v1alpha2 (Kubernetes 1.36 only)"}},
		"two groups are not there": {map[string][]string{"v1": {"nodes", "pods"}}, off, 0, []string{"policy/v1", "storage.k8s.io/v1"}},
	} {
		t.Run(name, func(t *testing.T) {
			pauses := make(chan time.Time, 10)
			for range 10 {
				pauses <- time.Time{}
			}
			err := checkServer(t.Context(), &someServer{serves: test.serves, failures: test.failures}, requirements(test.enabled), pauses)
			if (err != nil) != (len(test.says) > 0) || err != nil && !errors.Is(err, errMissing) {
				t.Fatalf("got %v, want %q", err, test.says)
			}
			for _, text := range test.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%v does not name %s", err, text)
				}
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := checkServer(ended, &someServer{failures: 1000}, requirements(on), nil); err != nil {
		t.Errorf("at the end of the process: %v", err)
	}
}
