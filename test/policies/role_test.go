package policies

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
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

// TestBindings asserts that each binding in config that gives a right which a policy restricts is the parameter of that
// policy. An account that had the right by another binding would not be restricted.
func TestBindings(t *testing.T) {
	var roles []rbacv1.ClusterRole
	var bindings []rbacv1.ClusterRoleBinding
	for _, path := range []string{"../../config/nodeagent/rbac.yaml", "../../config/scheduler/rbac.yaml"} {
		decode(t, path, "ClusterRole", &roles)
		decode(t, path, "ClusterRoleBinding", &bindings)
	}
	// What the API server's own roles give, which the scheduler has as every kube-scheduler does.
	roles = append(roles,
		role("system:volume-scheduler", "persistentvolumes"), role("system:kube-scheduler"))
	// By resource, the bindings that the policies read.
	parameters := map[string][]string{}
	files, err := filepath.Glob("../../config/admission/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		var policies []admissionv1.ValidatingAdmissionPolicy
		var bound []admissionv1.ValidatingAdmissionPolicyBinding
		decode(t, path, "ValidatingAdmissionPolicy", &policies)
		decode(t, path, "ValidatingAdmissionPolicyBinding", &bound)
		for _, policy := range policies {
			for _, b := range bound {
				for _, rule := range policy.Spec.MatchConstraints.ResourceRules {
					if b.Spec.ParamRef != nil && b.Spec.PolicyName == policy.Name {
						for _, resource := range rule.Resources {
							parameters[resource] = append(parameters[resource], b.Spec.ParamRef.Name)
						}
					}
				}
			}
		}
	}
	found := 0
	for _, b := range bindings {
		i := slices.IndexFunc(roles, func(r rbacv1.ClusterRole) bool { return r.Name == b.RoleRef.Name })
		if i < 0 {
			t.Errorf("ClusterRoleBinding %s: no role %s", b.Name, b.RoleRef.Name)
			continue
		}
		for _, resource := range written(roles[i].Rules) {
			if restricted := parameters[resource]; len(restricted) > 0 {
				found++
				if !slices.Contains(restricted, b.Name) {
					t.Errorf("ClusterRoleBinding %s permits its subjects to write %s, and no policy reads it", b.Name, resource)
				}
			}
		}
	}
	if found < 6 {
		t.Errorf("found %d restricted rights, want at least 6", found)
	}
}

// role is a ClusterRole that permits its subjects to change resources.
func role(name string, resources ...string) rbacv1.ClusterRole {
	out := rbacv1.ClusterRole{Rules: []rbacv1.PolicyRule{{Verbs: []string{"patch"}, Resources: resources}}}
	out.Name = name
	return out
}

// written are the resources that rules permit an account to write.
func written(rules []rbacv1.PolicyRule) []string {
	var out []string
	for _, rule := range rules {
		if slices.ContainsFunc(rule.Verbs, func(verb string) bool { return !slices.Contains([]string{"get", "list", "watch"}, verb) }) {
			out = append(out, rule.Resources...)
		}
	}
	return out
}

// decode appends the objects of a kind in a file to a list.
func decode[T any](t *testing.T, path, kind string, list *[]T) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range bytes.Split(data, []byte("\n---\n")) {
		var is struct{ Kind string }
		if err := yaml.Unmarshal(document, &is); err != nil {
			t.Fatal(err)
		}
		if is.Kind != kind {
			continue
		}
		var object T
		if err := yaml.UnmarshalStrict(document, &object); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		*list = append(*list, object)
	}
}
