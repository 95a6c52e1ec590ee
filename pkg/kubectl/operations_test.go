package kubectl

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestDoctorCode asserts that a finding is in the exit code, and that what is well or may not be read is not.
func TestDoctorCode(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	if have := server.run(t, nil, 0, "doctor"); have.code != exitNeedsOperator || have.err != "" {
		t.Errorf("with findings: code %d, %s", have.code, have.err)
	}
	if have := server.run(t, nil, 0, "doctor", "node-31"); have.code != exitFine || !strings.Contains(have.out, "All is well.") || strings.Contains(have.out, "node-17") {
		t.Errorf("a node that is well: code %d, %s%s", have.code, have.out, have.err)
	}
	if have := server.run(t, nil, 0, "doctor", "node-1000"); have.code != exitError || !strings.Contains(have.err, "neither a Node nor a NodeDiskCapacity") {
		t.Errorf("an unknown node: %+v", have)
	}
	have := server.run(t, nil, 0, "doctor", "-o", "jsonpath={.findings}/{.checks[?(@.of==\"classes\")].results[0].severity}")
	if have.code != exitNeedsOperator || have.out != "23/OK" {
		t.Errorf("as an object: %+v", have)
	}
	server.forbidden = []string{"csidrivers", "validatingadmissionpolicies"}
	have = server.run(t, nil, 0, "doctor")
	if !strings.Contains(have.out, "you may not read CSIDrivers") || !strings.Contains(have.out, "you may not read ValidatingAdmissionPolicies") {
		t.Errorf("without rights: %s%s", have.out, have.err)
	}
}

// TestDoctorFinds asserts that each check notices what it is for.
func TestDoctorFinds(t *testing.T) {
	without := func(kind, name string) func(*recorded) {
		return func(r *recorded) {
			r.objects = slices.DeleteFunc(r.objects, func(o unstructured.Unstructured) bool {
				return o.GetKind() == kind && (name == "" || o.GetName() == name)
			})
		}
	}
	set := func(kind, name string, value any, path ...string) func(*recorded) {
		return func(r *recorded) {
			for i := range r.objects {
				if o := &r.objects[i]; o.GetKind() == kind && o.GetName() == name {
					if err := unstructured.SetNestedField(o.Object, value, path...); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	for name, test := range map[string]struct {
		change func(*recorded)
		want   string
	}{
		"no CSIDriver":     {without("CSIDriver", ""), "CSIDriver              is missing: no pod can mount a volume of Berth"},
		"an old CSIDriver": {set("CSIDriver", "disk.berth.dev", false, "spec", "podInfoOnMount"), "is not that of this version"},
		"an old CRD":       {func(r *recorded) { r.unserved = []string{"diskclasses/status"} }, "lack diskclasses/status"},
		"no policies":      {without("ValidatingAdmissionPolicy", ""), "are missing or not bound: claims, nodediskcapacities, nodes"},
		"no scheduler":     {set("Deployment", "berth-scheduler", int64(0), "status", "readyReplicas"), "0 of 2 ready, v0.9.0: no pod with volumes of Berth is placed"},
		"half a scheduler": {set("Deployment", "berth-scheduler", int64(1), "status", "readyReplicas"), "!  scheduler              1 of 2 ready"},
		"another version": {func(r *recorded) {
			set("Deployment", "berth-scheduler", []any{map[string]any{"name": "main", "image": "berth/scheduler:v0.8.0"}}, "spec", "template", "spec", "containers")(r)
		}, "differ: agents v0.9.0, scheduler v0.8.0"},
		"an update that has not ended": {func(r *recorded) {
			set("DaemonSet", "berth-nodeagent", int64(7), "status", "numberReady")(r)
			set("DaemonSet", "berth-nodeagent", int64(5), "status", "updatedNumberScheduled")(r)
		}, "7 of 7 ready, v0.9.0: 2 have another version"},
		"no workloads":   {func(r *recorded) { without("Deployment", "")(r); without("DaemonSet", "")(r) }, "not checked: no workload of Berth was found"},
		"no DiskClass":   {without("DiskClass", ""), "there is no DiskClass: no disk is used until one selects it"},
		"no agents":      {func(r *recorded) { without("NodeDiskCapacity", "")(r); without("CSINode", "")(r) }, "no agent has published disks"},
		"a lost class":   {without("DiskClass", "ssd"), "13 disks of a class that does not exist"},
		"an old kernel":  {set("Node", "node-31", "5.4.0-1", "status", "nodeInfo", "kernelVersion"), "✗  node-31  runs Linux 5.4.0-1: the agent needs 5.12"},
		"another kernel": {set("Node", "node-31", "custom", "status", "nodeInfo", "kernelVersion"), "volumes can go to"},
		"a drain": {set("NodeDiskCapacity", "node-31", []any{map[string]any{
			"id": "4d1121ff-daa0-55d1-b93d-51aeb1d44a03", "device": "sdx", "size": int64(1 << 40), "state": "Draining",
			"allocations": []any{map[string]any{"partition": "bf34765d-be5f-52a4-be93-77389ebe9130", "start": int64(1 << 20), "length": int64(1 << 20), "phase": "Formatted"}},
		}}, "status", "disks"), "·  node-31/sdx      draining: 1 volume left"},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, "cluster.yaml", "operations.yaml")
			test.change(server)
			if have := server.run(t, nil, 0, "doctor"); !strings.Contains(have.out, test.want) {
				t.Errorf("no %q in\n%s%s", test.want, have.out, have.err)
			}
		})
	}
}

// TestTop asserts the orders, and what is selected.
func TestTop(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for args, want := range map[string]string{
		"top disks --limit 2 -o name":                        "node-31/nvme2n1\nnode-31/nvme0n1\n",
		"top nodes --sort frag --limit 1 -o name":            "node-11\n",
		"top nodes --sort volumes --limit 1 -o name":         "node-17\n",
		"top nodes --sort largest --limit 1 -o name":         "node-29\n",
		"top disks --node node-35 -o name":                   "node-35/nvme0n1\nnode-35/nvme1n1\n",
		"top nodes --class hdd -o name":                      "node-29\n",
		"top class -o jsonpath={.items[*].inService}":        "11 1",
		"top nodes --node node-99 -o jsonpath={..inService}": "0",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitFine || have.out != want {
			t.Errorf("%s: %+v, want %q", args, have, want)
		}
	}
	for args, says := range map[string]string{
		"top disks --sort size": "--sort is \"size\": it can be use, free, largest, frag, volumes",
		"top disks --limit -1":  "it can be 0 for all",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: %+v", args, have)
		}
	}
}

// TestCollect asserts what is in the archive, and that nothing secret is read or written.
func TestCollect(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	path := filepath.Join(t.TempDir(), "report.tar.gz")
	have := server.run(t, nil, 0, "collect", "--file", path, "--since", "2h")
	if have.code != exitFine || !strings.Contains(have.out, "Written to "+path) {
		t.Fatalf("%+v", have)
	}
	files := unpack(t, path)
	for name, want := range map[string]string{
		"berth/version.txt":                                                   "Berth v0.9.0",
		"berth/status.txt":                                                    "NEEDS YOU",
		"berth/doctor.txt":                                                    "23 findings.",
		"berth/map.txt":                                                       "node-07",
		"berth/objects/nodediskcapacities.yaml":                               "kind: NodeDiskCapacity\nmetadata:\n  creationTimestamp: \"2026-11-01T08:00:00Z\"\n  name: node-07",
		"berth/objects/diskclasses.yaml":                                      "name: tape",
		"berth/objects/nodes.yaml":                                            "5.14.0-503.el9.x86_64",
		"berth/objects/csinodes.yaml":                                         "kind: CSINode",
		"berth/objects/storageclasses.yaml":                                   "name: berth-ssd",
		"berth/objects/persistentvolumes.yaml":                                "volumeHandle: pvc-821cb3d2-f0a1-545e-8107-c43374038841",
		"berth/objects/persistentvolumeclaims.yaml":                           "name: data-kafka-3",
		"berth/objects/pods.yaml":                                             "name: kafka-3",
		"berth/objects/events.yaml":                                           "it fits nowhere",
		"berth/programs/pods.yaml":                                            "disk.berth.dev/note: kept",
		"berth/programs/daemonset.yaml":                                       "kind: DaemonSet",
		"berth/programs/deployment.yaml":                                      "kind: Deployment",
		"berth/logs/kube-system/berth-scheduler-0/scheduler.log":              "sinceSeconds=7200",
		"berth/logs/kube-system/berth-nodeagent-x7k2p/nodeagent.log":          "log of",
		"berth/logs/kube-system/berth-nodeagent-x7k2p/nodeagent.previous.log": "previous=true",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %.600s", name, want, files[name])
		}
		if !strings.Contains(have.out, strings.TrimPrefix(name, "berth/")) {
			t.Errorf("it does not say that it took %s", name)
		}
	}
	for name, text := range files {
		for _, secret := range []string{"secret", "managedFields", "foreign-event", "other.example.org"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s: %s", name, secret, text)
			}
		}
	}
	if slices.ContainsFunc(server.read, func(path string) bool {
		return strings.Contains(path, "secrets") || strings.Contains(path, "configmaps")
	}) {
		t.Errorf("it read %v", server.read)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read it: %v, %v", info, err)
	}
	if have := server.run(t, nil, 0, "collect", "--file", path); have.code != exitError || !strings.Contains(have.err, "exists: name another file") {
		t.Errorf("a file that exists: %+v", have)
	}
}

// TestCollectWithoutRights asserts that what may not be read is named, and that the rest is written. Nothing is left of
// a file that could not be written.
func TestCollectWithoutRights(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	server.forbidden = []string{"pods/log", "events"}
	path := filepath.Join(t.TempDir(), "report.tar.gz")
	have := server.run(t, nil, 0, "collect", "--file", path)
	for _, want := range []string{"logs: you may not read pods/log in namespace kube-system", "objects/events.yaml: you may not read it"} {
		if have.code != exitFine || !strings.Contains(have.out, want) {
			t.Errorf("no %q in %+v", want, have)
		}
	}
	if files := unpack(t, path); files["berth/objects/pods.yaml"] == "" || files["berth/objects/events.yaml"] != "" {
		t.Error("the rest is not written")
	}
	server.forbidden = []string{"nodediskcapacities"}
	path = filepath.Join(t.TempDir(), "other.tar.gz")
	have = server.run(t, nil, 0, "collect", "--file", path)
	if _, err := os.Stat(path); have.code != exitError || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%+v, the file: %v", have, err)
	}
	if have := server.run(t, nil, 0, "collect", "--since", "0s"); have.code != exitError || !strings.Contains(have.err, "it must be longer than 0") {
		t.Errorf("%+v", have)
	}
}

// unpack reads an archive.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	zipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	archive := tar.NewReader(zipped)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(text)
	}
}
