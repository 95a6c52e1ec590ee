package kubectl

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestReleaseNode asserts that volumes are given up only of a node that is gone, and with the flag that says so. Each
// volume is marked before its claim is deleted, by its UID.
func TestReleaseNode(t *testing.T) {
	server := serve(t, "cluster.yaml")
	release := func(args ...string) outcome {
		t.Helper()
		return server.run(t, nil, 0, append([]string{"release", "--node-gone", "node-07"}, args...)...)
	}
	if have := release("--yes-lose-data"); have.code != exitError || !strings.Contains(have.err, "node node-07 is not gone") || len(server.writes) > 0 {
		t.Fatalf("its Node exists: %+v", have)
	}
	server.objects = slices.DeleteFunc(server.objects, func(o unstructured.Unstructured) bool { return o.GetKind() == "Node" && o.GetName() == "node-07" })
	if have := release(); have.code != exitError || !strings.Contains(have.err, "give --yes-lose-data") || len(server.writes) > 0 {
		t.Fatalf("without the flag: %+v", have)
	}
	have := release("--dry-run=server")
	for _, want := range []string{"db/data-pg-0", "its claim is deleted", "pvc-bebf69e9", "nothing was changed"} {
		if have.code != exitFine || !strings.Contains(have.out, want) {
			t.Errorf("no %q in %+v", want, have)
		}
	}
	for _, w := range server.writes {
		if !strings.Contains(w.query+w.body, "dryRun=All") && !strings.Contains(w.body, "All") {
			t.Errorf("a dry run writes %+v", w)
		}
	}
	server = serve(t, "cluster.yaml")
	server.objects = slices.DeleteFunc(server.objects, func(o unstructured.Unstructured) bool { return o.GetKind() == "Node" && o.GetName() == "node-07" })
	server.refuse = 1
	if have := release("--yes-lose-data"); have.code != exitFine || !strings.Contains(have.out, "The scheduler removes them.") {
		t.Fatalf("%+v", have)
	}
	first := server.writes[1:] // the one before was refused
	if first[0].method != "PATCH" || !strings.Contains(first[0].body, `"disk.berth.dev/node-gone":"Delete"`) || !strings.Contains(first[0].body, string(corev1.PersistentVolumeReclaimRetain)) ||
		first[1].method != "DELETE" || !strings.Contains(first[1].path, "/persistentvolumeclaims/") || !strings.Contains(first[1].body, "bebf69e9-c623-56f6-863f-934097382429") {
		t.Errorf("the first writes are %+v", first[:2])
	}
	// Again, after it was interrupted: what is marked stays so.
	server.writes = nil
	if have := release("--yes-lose-data"); have.code != exitFine || !strings.Contains(have.out, "without claim") || len(server.writes) > 0 {
		t.Errorf("%+v, %+v", have, server.writes)
	}
	if have := server.run(t, nil, 0, "release", "--node-gone", "node-99"); have.code != exitFine || !strings.Contains(have.out, "no PersistentVolume") {
		t.Errorf("%+v", have)
	}
	if have := server.run(t, nil, 0, "release"); have.code != exitError || !strings.Contains(have.err, "name the node") {
		t.Errorf("%+v", have)
	}
}

// TestCompact asserts what the command writes and says.
func TestCompact(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for _, step := range []struct {
		args, says string
		compact    bool
		code       int
	}{
		{"compact node-07 nvme1n1 --undo --yes", "is not being compacted", false, exitFine},
		{"compact node-07 nvme1n1 --dry-run=server", "(server dry run: nothing was changed)", false, exitFine},
		{"compact node-07 nvme1n1 --yes", "with compact", true, exitFine},
		{"compact node-07 nvme1n1 --yes", "already", true, exitFine},
		{"compact node-07 nvme1n1 --undo --yes", "without compact", false, exitFine},
		{"cordon node-07 nvme1n1 --yes", "Cordoned", false, exitFine},
		{"compact node-07 nvme1n1 --yes", "is not compacted", false, exitError},
	} {
		have := server.run(t, nil, 0, strings.Fields(step.args)...)
		spec := server.spec(t, "node-07")
		if have.code != step.code || !strings.Contains(have.out+have.err, step.says) || spec.Decision(disk1).Compact != step.compact {
			t.Errorf("%s: %+v, %+v", step.args, have, spec)
		}
	}
}
