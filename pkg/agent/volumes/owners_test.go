package volumes

import (
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestNamespaceOf asserts that the namespace comes from the partition's name, or from the note if the name was cut.
func TestNamespaceOf(t *testing.T) {
	const cut = "a-namespace-with-a-name-that-is-too-"
	for _, tc := range []struct{ name, note, want string }{
		{"ns/pod/data", "", "ns"},
		{"ns/a-pod-with-a-name-that-is-too-lo", `{"podNamespace":"other"}`, "ns"},
		{cut, "", ""},
		{cut, `{"podNamespace":"` + cut + `long"}`, cut + "long"},
		{cut, `{"podNamespace":"other"}`, ""},
		{cut, `{"podNamespace":"` + cut + `"}`, ""},
		{cut, `{"podNamespace":"` + cut + `../x"}`, ""},
		{cut, "{", ""},
		{"", `{"podNamespace":"other"}`, ""},
		{"", "", ""},
	} {
		if got := namespaceOf(disk.Volume{Name: tc.name, Note: tc.note}); got != tc.want {
			t.Errorf("namespace of %q with note %q is %q, want %q", tc.name, tc.note, got, tc.want)
		}
	}
}

// TestLongNamespace asserts that a volume of a pod in a namespace with a long name does not have the agent list all
// pods.
func TestLongNamespace(t *testing.T) {
	for _, namespace := range []string{"ns", strings.Repeat("n", 35), strings.Repeat("n", 36), strings.Repeat("n", 63)} {
		f := newFixture(t)
		f.loopDisk()
		pod, partition := inlinePod("a")
		pod.Namespace = namespace
		f.api.put(pod)
		f.addPod(pod)
		if err := f.inlineController.sync(t.Context(), keyOf(pod)); err != nil {
			t.Fatal(err)
		}
		f.removePods(pod)
		f.sweep()
		f.checkPhase(partition, disk.Formatted)
		if got := f.api.asked("GET /api/v1/namespaces/" + namespace + "/pods"); got == 0 {
			t.Errorf("%s: its pods are not listed", namespace)
		}
		// Once for the node's own pods.
		if all, swept := f.api.asked("GET /api/v1/pods"), f.api.asked("GET /api/v1/namespaces/"+namespace+"/pods"); all != swept {
			t.Errorf("%s: %d lists of all namespaces for %d sweeps", namespace, all, swept)
		}
	}
}
