package policies

import (
	"bytes"
	"os"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// TestAgentRole asserts that an agent may write only events and the objects that the policies restrict. No policy could
// restrict the other permissions, such as pods/eviction: a policy does not see on which node a pod is.
func TestAgentRole(t *testing.T) {
	data, err := os.ReadFile("../../config/nodeagent/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	bounded := []string{"nodediskcapacities", "nodediskcapacities/status", "persistentvolumes", "events"}
	reads := []string{"get", "list", "watch"}
	rules := 0
	for _, document := range bytes.Split(data, []byte("\n---\n")) {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal(document, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			rules++
			for _, verb := range rule.Verbs {
				for _, resource := range rule.Resources {
					if !slices.Contains(reads, verb) && !slices.Contains(bounded, resource) {
						t.Errorf("an agent may %s %s", verb, resource)
					}
				}
			}
		}
	}
	if rules == 0 {
		t.Error("found no rule")
	}
}
