package kubectl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
)

// IDs of disks of node-07.
const (
	disk0 = "49635407-70aa-5ad4-a93c-95d641a3621d"
	disk1 = "4ccf3293-880a-5cef-9aef-be47d7b13d0b"
	// orphanID is the volume of node-07 without PersistentVolume.
	orphanID = "pvc-3e2d5782-f630-56a9-a8b4-adb45db3fd25"
)

// answer runs a command for a user who can be asked, and answers.
func (r *recorded) answerTo(t *testing.T, answer string, args ...string) outcome {
	t.Helper()
	var out, errOut bytes.Buffer
	config := genericclioptions.NewConfigFlags(false)
	config.APIServer = &r.URL
	s := newSession(genericiooptions.IOStreams{In: strings.NewReader(answer), Out: &out, ErrOut: &errOut})
	s.config, s.interactive = config, true
	root := newCommand(s)
	root.SetArgs(args)
	code := exitCode(t.Context(), s, root)
	return outcome{out.String(), errOut.String(), code}
}

// spec is what the server has of a node.
func (r *recorded) spec(t *testing.T, node string) diskv1alpha1.NodeDiskCapacitySpec {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.objects {
		if o.GetKind() == "NodeDiskCapacity" && o.GetName() == node {
			var ndc diskv1alpha1.NodeDiskCapacity
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &ndc); err != nil {
				t.Fatal(err)
			}
			return ndc.Spec
		}
	}
	t.Fatalf("there is no %s", node)
	return diskv1alpha1.NodeDiskCapacitySpec{}
}

// TestCordonAndDrain asserts what the commands write and say, one after the other: each leaves what the others and
// other people have decided.
func TestCordonAndDrain(t *testing.T) {
	server := serve(t, "cluster.yaml")
	cordoned := diskv1alpha1.DiskDecision{ID: disk1, Unschedulable: true}
	drained := diskv1alpha1.DiskDecision{ID: disk1, Unschedulable: true, Drain: &diskv1alpha1.DiskDrain{Mode: diskv1alpha1.DrainMove}}
	evicted := diskv1alpha1.DiskDecision{ID: disk1, Unschedulable: true, Drain: &diskv1alpha1.DiskDrain{Mode: diskv1alpha1.DrainEvict, Reason: "old"}}
	other := diskv1alpha1.DiskDecision{ID: disk0, Unschedulable: true}
	for _, step := range []struct {
		args string
		says []string
		want []diskv1alpha1.DiskDecision
	}{
		{"cordon node-07 nvme1n1 --dry-run=server", []string{"Disk node-07/nvme1n1 (4ccf3293, ssd, 1.7Ti) takes no new volumes from now on", "(server dry run: nothing was changed)"}, nil},
		{"cordon node-07 nvme1n1 --yes", []string{"It keeps its 2 volumes.", "Cordoned node-07/nvme1n1: spec.disks of NodeDiskCapacity node-07 has " + disk1 + " with unschedulable."}, []diskv1alpha1.DiskDecision{cordoned}},
		{"cordon node-07/nvme1n1", []string{"is cordoned already: nothing was changed."}, []diskv1alpha1.DiskDecision{cordoned}},
		{"cordon node-07 4963 -y", []string{"Cordoned node-07/nvme0n1"}, []diskv1alpha1.DiskDecision{cordoned, other}},
		{"drain node-07 /dev/nvme1n1 --yes", []string{
			"its 2 volumes shall leave it", "1023.9Gi  ml/train-9 scratch  inline  ends with its pod", "500Gi  db/data-kafka-1     claim   is moved to another disk at once",
			"Draining node-07/nvme1n1: spec.disks of NodeDiskCapacity node-07 has " + disk1 + " with drain in mode Move.",
		}, []diskv1alpha1.DiskDecision{drained, other}},
		{"drain node-07 nvme1n1", []string{"is being drained already, in mode Move: nothing was changed."}, []diskv1alpha1.DiskDecision{drained, other}},
		{"drain node-07 nvme1n1 --evict --reason old --yes", []string{"which has no controller and is not evicted: delete it", "in mode Evict."}, []diskv1alpha1.DiskDecision{evicted, other}},
		{"drain node-07 nvme1n1 --undo --yes", []string{"It stays cordoned.", "Ended the drain of node-07/nvme1n1"}, []diskv1alpha1.DiskDecision{cordoned, other}},
		{"drain node-07 nvme1n1 --undo", []string{"is not being drained: nothing was changed."}, []diskv1alpha1.DiskDecision{cordoned, other}},
		{"uncordon node-07 4CCF3293-880A --yes", []string{"takes new volumes again.", "Uncordoned node-07/nvme1n1"}, []diskv1alpha1.DiskDecision{other}},
		{"uncordon node-07 nvme1n1", []string{"is not cordoned: nothing was changed."}, []diskv1alpha1.DiskDecision{other}},
		{"uncordon node-07 nvme0n1 --yes", []string{"Uncordoned node-07/nvme0n1"}, nil},
	} {
		have := server.run(t, nil, 0, strings.Fields(step.args)...)
		for _, says := range step.says {
			if have.code != exitFine || !strings.Contains(have.out, says) {
				t.Errorf("%s: code %d, no %q in\n%s%s", step.args, have.code, says, have.out, have.err)
			}
		}
		if got := server.spec(t, "node-07").Disks; fmt.Sprint(texts(t, got)) != fmt.Sprint(texts(t, step.want)) {
			t.Fatalf("%s: spec.disks is %v", step.args, texts(t, got))
		}
	}
	for _, w := range server.writes {
		if w.method != "PATCH" || !strings.Contains(w.query, "fieldManager="+fieldManager) || strings.Contains(w.body, "status") || strings.Contains(w.body, "adopt") {
			t.Errorf("it wrote %+v", w)
		}
	}
}

func texts(t *testing.T, decisions []diskv1alpha1.DiskDecision) []string {
	t.Helper()
	var found []string
	for _, d := range decisions {
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, string(text))
	}
	return found
}

// TestDiskNames asserts which disks names mean, and that a wrong one is refused with those that there are.
func TestDiskNames(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	for args, says := range map[string]string{
		"cordon node-07 sdz --yes":               `node node-07 has no disk "sdz": it has nvme0n1 (49635407), nvme1n1 (4ccf3293)`,
		"cordon node-07 496 --yes":               `node node-07 has no disk "496"`,
		"cordon node-60 5f3b2c10 --yes":          `node node-60 has 2 disks that "5f3b2c10" can mean: sda (5f3b2c10-1), 5f3b2c10-9 (gone); give more of the ID`,
		"drain node-60 5f3b2c10-9 --yes":         "there is nothing to drain",
		"cordon node-07 --yes":                   "name the disk as NODE DISK or NODE/DISK",
		"cordon node-07/nvme0n1 nvme1n1 --yes":   "both name a disk",
		"cordon node-1000 sda --yes":             "node node-1000 has no NodeDiskCapacity",
		"cordon node-43 sda --yes":               "it has no disk of Berth",
		"cordon node-07 nvme0n1":                 "there is no terminal to ask: give --yes",
		"cordon node-07 nvme0n1 --dry-run=yes":   `--dry-run is "yes": it can be none or server`,
		"drain node-07 nvme0n1 --undo --evict":   "--undo excludes --evict",
		"drain node-07 nvme0n1 --timeout 1s":     "--timeout needs --wait",
		"drain node-07 nvme0n1 --wait --dry-run": "exclude each other",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: code %d, %q, %q", args, have.code, have.out, have.err)
		}
	}
	if len(server.writes) > 0 {
		t.Errorf("it wrote %+v", server.writes)
	}
	have := server.run(t, nil, 0, "uncordon", "node-60", "5f3b2c10-9", "--yes")
	if got := server.spec(t, "node-60").Disks; have.code != exitFine || len(got) != 1 || got[0].ID != "5f3b2c10-1111-4222-8333-444455556666" {
		t.Errorf("a disk that is gone: %+v, %v", have, got)
	}
	have = server.run(t, nil, 0, "cordon", "node-31", "nvme0n1", "--yes")
	if have.code != exitFine || !strings.Contains(have.out, "It keeps its 1 volume.") {
		t.Errorf("%+v", have)
	}
}

// TestDrainPlan asserts what is said of each volume before a drain.
func TestDrainPlan(t *testing.T) {
	server := serve(t, "cluster.yaml")
	user := unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"namespace": "db", "name": "pg-0"}, "status": map[string]any{"phase": "Running"},
		"spec": map[string]any{"nodeName": "node-07", "volumes": []any{map[string]any{"name": "data", "persistentVolumeClaim": map[string]any{"claimName": "data-pg-0"}}}},
	}}
	server.objects = append(server.objects, user)
	wants := func(name, line string, want ...string) {
		t.Helper()
		have := server.run(t, nil, 0, append([]string{"drain", "--dry-run=server"}, strings.Fields(line)...)...)
		for _, w := range want {
			if have.code != exitFine || !strings.Contains(strings.Join(strings.Fields(have.out), " ")+" ", w) {
				t.Errorf("%s: no %q in\n%s%s", name, w, have.out, have.err)
			}
		}
	}
	wants("Move", "node-07 nvme0n1", "db/data-pg-0 claim is moved to another disk when pod db/pg-0 ends 400Gi", "logs/loki-2 data inline ends with its pod 60Gi",
		"ci/build-5512 wiping is being wiped", "db/data-old-0 orphan stays: it has no PersistentVolume. See kubectl berth orphans",
		"db/data-pg-1 claim stays: no other disk has 400Gi of its class in one piece, the most is 264Gi")
	wants("Evict", "node-07 nvme0n1 --evict", "when pod db/pg-0 ends, which has no controller and is not evicted: delete it", "in mode Evict")
	user.SetOwnerReferences([]metav1.OwnerReference{{Kind: "StatefulSet", Name: "pg", Controller: new(true)}})
	wants("Evict, with a controller", "node-07 nvme0n1 --evict", "when pod db/pg-0 ends, which is evicted 400Gi")
	if err := unstructured.SetNestedField(user.Object, "Succeeded", "status", "phase"); err != nil {
		t.Fatal(err)
	}
	wants("a pod that has ended", "node-07 nvme0n1", "db/data-pg-0 claim is moved to another disk at once")
	wants("no other disk", "node-29 nvme0n1", "db/big-0 claim stays: no other disk has 1.4Ti of its class in one piece, the most is 0")
	wants("without volumes", "node-29 sda", "It has none.")
	server.forbidden = []string{"pods"}
	wants("without the right to read pods", "node-07 nvme0n1", "db/data-pg-0 claim is moved to another disk when no pod uses it")
}

// TestUncordonOfDrained asserts that a disk that is only drained is not uncordoned.
func TestUncordonOfDrained(t *testing.T) {
	server := serve(t, "cluster.yaml")
	if have := server.run(t, nil, 0, "drain", "node-07", "nvme1n1", "--yes"); have.code != exitFine {
		t.Fatalf("%+v", have)
	}
	have := server.run(t, nil, 0, "uncordon", "node-07", "nvme1n1", "--yes")
	if have.code != exitError || !strings.Contains(have.err, "kubectl berth drain node-07 nvme1n1 --undo ends that") {
		t.Errorf("%+v", have)
	}
	if got := server.spec(t, "node-07").Disks; len(got) != 1 || got[0].Drain == nil {
		t.Errorf("spec.disks is %v", got)
	}
}

// TestOtherDecisions asserts that what else was decided about a disk stays when it is cordoned and uncordoned.
func TestOtherDecisions(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for _, o := range server.objects {
		if o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-07" {
			if err := unstructured.SetNestedSlice(o.Object, []any{map[string]any{"id": disk1, "compact": true}}, "spec", "disks"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, args := range []string{"cordon node-07 nvme1n1 --yes", "uncordon node-07 nvme1n1 --yes", "drain node-07 nvme1n1 --yes", "drain node-07 nvme1n1 --undo --yes"} {
		have := server.run(t, nil, 0, strings.Fields(args)...)
		if got := server.spec(t, "node-07").Disks; have.code != exitFine || len(got) != 1 || !got[0].Compact {
			t.Fatalf("%s: %+v, %v", args, have, texts(t, got))
		}
	}
}

// TestUnknownDecisions asserts that a program that is older than the CRDs changes nothing that it does not know.
func TestUnknownDecisions(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for _, o := range server.objects {
		if o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-07" {
			if err := unstructured.SetNestedSlice(o.Object, []any{map[string]any{"id": disk0, "later": true}}, "spec", "disks"); err != nil {
				t.Fatal(err)
			}
		}
	}
	have := server.run(t, nil, 0, "cordon", "node-07", "nvme1n1", "--yes")
	if have.code != exitError || !strings.Contains(have.err, "use kubectl-berth of the version of the CRDs") || len(server.writes) > 0 {
		t.Errorf("%+v, it wrote %+v", have, server.writes)
	}
}

// TestQuestion asserts that nothing is written before the user says yes, and that the question says what will be done.
func TestQuestion(t *testing.T) {
	for answer, yes := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yesterday\n": false} {
		server := serve(t, "cluster.yaml")
		have := server.answerTo(t, answer, "cordon", "node-07", "nvme1n1")
		if written := len(server.writes) > 0; written != yes || (have.code == exitFine) != yes {
			t.Errorf("%q: code %d, written %v: %s", answer, have.code, written, have.err)
		}
		if !strings.Contains(have.out, "takes no new volumes from now on") || !strings.Contains(have.err, "Go on? [y/N]") {
			t.Errorf("%q: %+v", answer, have)
		}
		if !yes && !strings.Contains(have.err, "nothing was changed") {
			t.Errorf("%q: %s", answer, have.err)
		}
	}
}

// TestInterruptedQuestion asserts that a user who is asked can interrupt the program, and that nothing is written then.
func TestInterruptedQuestion(t *testing.T) {
	server := serve(t, "cluster.yaml")
	silent, writer := io.Pipe()
	t.Cleanup(func() { _ = writer.Close() })
	ctx, interrupt := context.WithCancel(t.Context())
	s := newSession(genericiooptions.IOStreams{In: silent, Out: io.Discard, ErrOut: writerFunc(func(text []byte) {
		if bytes.Contains(text, []byte("Go on?")) {
			interrupt()
		}
	})})
	s.config, s.interactive = genericclioptions.NewConfigFlags(false), true
	s.config.APIServer = &server.URL
	root := newCommand(s)
	root.SetArgs([]string{"cordon", "node-07", "nvme1n1"})
	codes := make(chan int, 1)
	go func() { codes <- exitCode(ctx, s, root) }()
	select {
	case code := <-codes:
		if code != exitError || len(server.writes) > 0 {
			t.Errorf("code %d, it wrote %+v", code, server.writes)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for the answer")
	}
}

// writerFunc is called with what is written.
type writerFunc func([]byte)

func (w writerFunc) Write(text []byte) (int, error) {
	w(text)
	return len(text), nil
}

// TestConflict asserts that a change is made to the object as it is by then, and that an API server that leaves out
// what it does not know is noticed.
func TestConflict(t *testing.T) {
	server := serve(t, "cluster.yaml")
	server.refuse = 2
	have := server.run(t, nil, 0, "cordon", "node-07", "nvme1n1", "--yes")
	if got := server.spec(t, "node-07").Disks; have.code != exitFine || len(got) != 1 || len(server.writes) != 3 {
		t.Errorf("%+v, %v, %d writes", have, got, len(server.writes))
	}
	for _, w := range server.writes {
		if !strings.Contains(w.body, `"resourceVersion":"1001"`) {
			t.Errorf("a write that overwrites what others have written: %s", w.body)
		}
	}
	server = serve(t, "cluster.yaml")
	server.pruned = []string{"spec.disks"}
	have = server.run(t, nil, 0, "cordon", "node-07", "nvme1n1", "--yes")
	if have.code != exitError || !strings.Contains(have.err, "its CRDs are older than this program") {
		t.Errorf("%+v", have)
	}
}

// TestAdopt asserts what is approved, and by which name.
func TestAdopt(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	if have := server.run(t, nil, 0, "adopt", "-o", "name"); have.out != "node-43/nvme1n1\nnode-60/sdd\nnode-60/sde\n" {
		t.Errorf("the candidates: %+v", have)
	}
	have := server.run(t, nil, 0, "adopt", "node-43:nvme1n1", "--dry-run=server")
	if got := server.spec(t, "node-43").Adopt; have.code != exitFine || len(got) != 0 || !strings.Contains(have.out, "nothing was changed") {
		t.Errorf("dry run: %+v, %v", have, got)
	}
	for _, args := range []string{"adopt node-43/nvme1n1 --yes", "adopt node-43:AWS22F1C0 --class hdd --yes"} {
		have := server.run(t, nil, 0, strings.Fields(args)...)
		class := "ssd"
		if strings.Contains(args, "hdd") {
			class = "hdd"
		}
		want := diskv1alpha1.DeviceApproval{Serial: "AWS22F1C0", Class: class, Fingerprint: "8d2f0c1a9b3e4f57", ApprovedBy: "anna@example.org"}
		if got := server.spec(t, "node-43").Adopt; have.code != exitFine || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %+v, spec.adopt %+v", args, have, got)
		}
		if !strings.Contains(have.out, "Approved node-43/nvme1n1: spec.adopt of NodeDiskCapacity node-43 has serial AWS22F1C0 for class "+class+".") {
			t.Errorf("%s: %+v", args, have)
		}
	}
	// Approvals of other devices stay.
	if have := server.run(t, nil, 0, "adopt", "node-60:sde", "--yes"); have.code != exitFine {
		t.Errorf("%+v", have)
	}
	if got := server.spec(t, "node-60").Adopt; len(got) != 2 || got[0].Serial != "AWS22F1D1" || got[1].Serial != "AWS22F1D2" || got[1].Fingerprint != "fedcba9876543210" {
		t.Errorf("spec.adopt is %+v", got)
	}
	for args, says := range map[string]string{
		"adopt node-43:nvme0n1 --yes":              "device node-43/nvme0n1 is Busy, and cannot be approved: the device is mounted at /",
		"adopt node-43:nvme9n1 --yes":              `node node-43 has no device "nvme9n1": it has nvme0n1 (Busy, serial AWS22F1BF), nvme1n1`,
		"adopt node-43:nvme1n1 --class x --yes":    `DiskClass "x" does not exist: there are hdd, ssd, tape`,
		"adopt node-43:nvme1n1":                    "give --yes",
		"adopt node-43 --yes":                      "name the device as NODE:DEVICE",
		"adopt --yes":                              "name the device to approve",
		"adopt node-43:nvme1n1 --wait --dry-run":   "exclude each other",
		"adopt node-43:nvme1n1 --timeout 0s --yes": "it must be longer than 0",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: %+v", args, have)
		}
	}
}

// TestApprovals asserts that an approval names a device by what no other device of the node has, and that one that has
// changed since the user saw it is not approved.
func TestApprovals(t *testing.T) {
	twin := diskv1alpha1.Device{Name: "sdb", Serial: "1", WWN: "naa.5", ByID: "/dev/disk/by-id/b", State: diskv1alpha1.DeviceCandidate, Fingerprint: "0123456789abcdef"}
	for name, test := range map[string]struct {
		device diskv1alpha1.Device
		want   string
	}{
		"WWN":                {diskv1alpha1.Device{Name: "sda", WWN: "naa.4", Serial: "2", ByID: "/dev/disk/by-id/a"}, "wwn naa.4"},
		"WWN of two":         {diskv1alpha1.Device{Name: "sda", WWN: "naa.5", Serial: "2", ByID: "/dev/disk/by-id/a"}, "serial 2"},
		"WWN, serial of two": {diskv1alpha1.Device{Name: "sda", WWN: "naa.5", Serial: "1", ByID: "/dev/disk/by-id/a"}, "/dev/disk/by-id/a"},
		"nothing of its own": {diskv1alpha1.Device{Name: "sda", WWN: "naa.5", Serial: "1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.device.Fingerprint, test.device.State = "fedcba9876543210", diskv1alpha1.DeviceCandidate
			ndc := &diskv1alpha1.NodeDiskCapacity{Status: diskv1alpha1.NodeDiskCapacityStatus{Devices: []diskv1alpha1.Device{test.device, twin}}}
			d, err := findDevice(ndc, "sda")
			if err != nil {
				t.Fatal(err)
			}
			approval, err := approvalOf(ndc, d, "ssd", strings.Repeat("u", 300))
			if (err != nil) != (test.want == "") || err == nil && nameOf(&approval) != test.want || len(approval.ApprovedBy) > 253 {
				t.Fatalf("%+v, %v", approval, err)
			}
			if err != nil {
				return
			}
			if changed, err := approve(ndc, d, approval); !changed || err != nil {
				t.Errorf("%v, %v", changed, err)
			}
			if changed, err := approve(ndc, d, approval); changed || err != nil || len(ndc.Spec.Adopt) != 1 {
				t.Errorf("again: %v, %v, %+v", changed, err, ndc.Spec.Adopt)
			}
			ndc.Status.Devices[0].Fingerprint = "0000000000000000"
			if changed, err := approve(ndc, d, approval); changed || err == nil {
				t.Errorf("it has changed: %v, %v", changed, err)
			}
		})
	}
	ndc := &diskv1alpha1.NodeDiskCapacity{Status: diskv1alpha1.NodeDiskCapacityStatus{Devices: []diskv1alpha1.Device{twin, {Name: "sdc", Serial: "1"}}}}
	if d, err := findDevice(ndc, "1"); err == nil {
		t.Errorf("a serial number of two is %v", d)
	}
}

// volume is the PersistentVolume that was written last.
func (r *recorded) volume(t *testing.T) corev1.PersistentVolume {
	t.Helper()
	var pv corev1.PersistentVolume
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(r.created.Object, &pv); err != nil {
		t.Fatal(err)
	}
	return pv
}

// TestOrphansAdopt asserts that a volume gets a PersistentVolume that names its place, keeps its data, and is reserved
// for its claim.
func TestOrphansAdopt(t *testing.T) {
	server := serve(t, "cluster.yaml")
	have := server.run(t, nil, 0, "orphans", "adopt", "3e2d5782", "--yes")
	if have.code != exitFine || !strings.Contains(have.out, "StorageClass berth-ssd, Filesystem, ReadWriteOnce, policy Retain; it is reserved for claim db/data-old-0.") {
		t.Fatalf("%+v", have)
	}
	pv := server.volume(t)
	v, err := claim.ReadVolume(&pv)
	want := diskv1alpha1.Place{Disk: disk0, Extent: diskv1alpha1.Extent{Start: 1687922147328, Length: 231928233984}}
	if err != nil || v.ID != orphanID || v.Node != "node-07" || v.Place != want || v.Size != want.Length || v.Class != "ssd" || v.FSType != "" || v.Block {
		t.Errorf("%+v, %v", v, err)
	}
	ref := pv.Spec.ClaimRef
	if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || pv.Spec.StorageClassName != "berth-ssd" ||
		ref == nil || ref.Namespace != "db" || ref.Name != "data-old-0" || ref.UID != "" || !slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume) {
		t.Errorf("%+v", pv)
	}
	if have := server.run(t, nil, 0, "orphans", "adopt", orphanID, "--yes"); have.code != exitError || !strings.Contains(have.err, "it is no orphan") {
		t.Errorf("twice: %+v", have)
	}
	server = serve(t, "cluster.yaml")
	have = server.run(t, nil, 0, "orphans", "adopt", orphanID, "--any-claim", "--volume-mode", "Block", "--yes")
	if pv := server.volume(t); have.code != exitFine || pv.Spec.ClaimRef != nil || *pv.Spec.VolumeMode != corev1.PersistentVolumeBlock {
		t.Errorf("%+v, %+v", have, pv)
	}
	server = serve(t, "cluster.yaml")
	for _, o := range server.objects {
		if o.GetKind() == "PersistentVolumeClaim" && o.GetName() == "data-kafka-3" {
			if err := unstructured.SetNestedSlice(o.Object, []any{"ReadWriteOncePod"}, "spec", "accessModes"); err != nil {
				t.Fatal(err)
			}
		}
	}
	have = server.run(t, nil, 0, "orphans", "adopt", orphanID, "--claim", "db/data-kafka-3", "--dry-run=server")
	if modes := server.volume(t).Spec.AccessModes; len(modes) != 1 || modes[0] != corev1.ReadWriteOncePod {
		t.Errorf("the modes of the claim are not taken: %v", modes)
	}
	if have.code != exitFine || server.volume(t).Spec.ClaimRef.Name != "data-kafka-3" || !strings.Contains(have.out, "nothing was changed") {
		t.Errorf("%+v", have)
	}
	server = serve(t, "cluster.yaml")
	for _, o := range server.objects {
		if o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-31" {
			disks, _, _ := unstructured.NestedFieldNoCopy(o.Object, "status", "disks")
			allocations, _ := disks.([]any)[0].(map[string]any)["allocations"].([]any)
			allocations[0].(map[string]any)["volume"] = orphanID
		}
	}
	if have := server.run(t, nil, 0, "orphans", "adopt", orphanID, "--yes"); have.code != exitError || !strings.Contains(have.err, "is in 2 places") {
		t.Errorf("a volume in two places: %+v", have)
	}
	server = serve(t, "cluster.yaml")
	for args, says := range map[string]string{
		"orphans adopt pvc-1000 --yes":                                     "these are " + orphanID + " on node-07",
		"orphans adopt " + orphanID:                                        "give --yes",
		"orphans adopt " + orphanID + " --storage-class x --yes":           `--storage-class is "x": Berth's StorageClasses are berth-ssd`,
		"orphans adopt " + orphanID + " --claim db --yes":                  "write it as namespace/name",
		"orphans adopt " + orphanID + " --claim db/data-pg-1 --yes":        "claim db/data-pg-1 has PersistentVolume pvc-821cb3d2",
		"orphans adopt " + orphanID + " --claim a/b --any-claim --yes":     "exclude each other",
		"orphans adopt " + orphanID + " --volume-mode raw --yes":           "it can be Filesystem or Block",
		"orphans adopt " + orphanID + " --access-mode ReadWriteMany --yes": "it can be ReadWriteOnce or ReadWriteOncePod",
		"orphans adopt csi-b1276cb46ef94c5901731edae9118939 --yes":         "is no persistent volume without PersistentVolume",
		"orphans adopt pvc-bebf69e9-c623-56f6-863f-934097382429 --yes":     "is no persistent volume without PersistentVolume",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: %+v", args, have)
		}
	}
}

// TestOrphansRelease asserts that the data is given up only with the flag that says so, that no claim can get the
// volume meanwhile, and that a volume whose claim exists is kept.
func TestOrphansRelease(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for args, says := range map[string]string{
		"orphans release " + orphanID:            "give --yes-lose-data",
		"orphans release " + orphanID + " --yes": "unknown flag: --yes",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: %+v", args, have)
		}
	}
	if have := server.run(t, nil, 0, "orphans", "release", orphanID, "--dry-run=server"); have.code != exitFine || len(server.writes) != 1 || !strings.Contains(have.out, "Its data is lost.") {
		t.Errorf("%+v, %d writes", have, len(server.writes))
	}
	have := server.run(t, nil, 0, "orphans", "release", orphanID, "--yes-lose-data")
	pv := server.volume(t)
	if have.code != exitFine || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.ClaimRef == nil ||
		pv.Spec.ClaimRef.UID != "3e2d5782-f630-56a9-a8b4-adb45db3fd25" || pv.Spec.ClaimRef.Name != "data-old-0" || pv.Spec.StorageClassName != "" {
		t.Errorf("%+v, %+v", have, pv)
	}
	if last := server.writes[len(server.writes)-1]; last.method != "DELETE" || !strings.HasSuffix(last.path, orphanID) || !strings.Contains(last.body, "made") {
		t.Errorf("it is not deleted, or by its name alone: %+v", last)
	}
	server = serve(t, "cluster.yaml")
	server.objects = append(server.objects, unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolumeClaim",
		"metadata": map[string]any{"namespace": "db", "name": "any", "uid": "3e2d5782-f630-56a9-a8b4-adb45db3fd25"},
	}})
	if have := server.run(t, nil, 0, "orphans", "release", orphanID, "--yes-lose-data"); have.code != exitError || !strings.Contains(have.err, "still exists") || len(server.writes) > 0 {
		t.Errorf("its claim exists: %+v", have)
	}
}

// TestOrphansConfirm asserts that volumes of pods are given up only where reclaim is stopped, and not more than the
// user has seen.
func TestOrphansConfirm(t *testing.T) {
	server := serve(t, "cluster.yaml")
	if have := server.run(t, nil, 0, "orphans", "confirm", "node-17", "2", "--yes-lose-data"); have.code != exitError || !strings.Contains(have.err, "reclaim is not stopped") {
		t.Errorf("%+v", have)
	}
	stopReclaim(t, server)
	for args, says := range map[string]string{
		"orphans confirm node-17 1 --yes-lose-data": "2 volumes of node node-17 have lost their pods, not 1",
		"orphans confirm node-17 x --yes-lose-data": `"x" is not how many volumes they are`,
		"orphans confirm node-17 2":                 "give --yes-lose-data",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) || len(server.writes) > 0 {
			t.Errorf("%s: %+v", args, have)
		}
	}
	have := server.run(t, nil, 0, "orphans", "confirm", "node-17", "2", "--yes-lose-data")
	if have.code != exitFine || len(server.writes) != 1 || server.writes[0].body != `{"metadata":{"annotations":{"disk.berth.dev/reclaim-orphans":"2"}}}` {
		t.Errorf("%+v, %+v", have, server.writes)
	}
}

// stopReclaim makes orphans of two inline volumes of node-17, where reclaim is stopped.
func stopReclaim(t *testing.T, server *recorded) {
	t.Helper()
	for _, o := range server.objects {
		if o.GetKind() != "NodeDiskCapacity" || o.GetName() != "node-17" {
			continue
		}
		disks, _, _ := unstructured.NestedFieldNoCopy(o.Object, "status", "disks")
		allocations, _ := disks.([]any)[0].(map[string]any)["allocations"].([]any)
		for i := range 2 {
			allocations[i].(map[string]any)["orphanedSince"] = "2026-11-29T11:48:00Z"
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		conditions = append(conditions, map[string]any{
			"type": "ReclaimStopped", "status": "True", "reason": "Doubt", "message": "2 volumes have lost their pods", "lastTransitionTime": "2026-11-29T11:48:00Z",
		})
		if err := unstructured.SetNestedSlice(o.Object, conditions, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMadeFor asserts that the claim is found by which the agent knows the volume, and no other.
func TestMadeFor(t *testing.T) {
	ndc := &diskv1alpha1.NodeDiskCapacity{Status: diskv1alpha1.NodeDiskCapacityStatus{Conditions: []metav1.Condition{{
		Type: diskv1alpha1.ConditionOrphanedVolumes, Message: "3 volumes have no PersistentVolume and are kept: pvc-1 (made for claim a/b), pvc-2, pvc-3 (made for claim c/d), pvc-4 (made for cla",
	}}}}
	for volume, want := range map[string]string{"pvc-1": "a/b", "pvc-2": "", "pvc-3": "c/d", "pvc-4": "", "pvc-5": ""} {
		if have := madeFor(ndc, volume); have != want {
			t.Errorf("%s: %q, want %q", volume, have, want)
		}
	}
	ndc.Status.Conditions = nil
	if have := madeFor(ndc, "pvc-1"); have != "" {
		t.Errorf("without a condition: %q", have)
	}
}

// TestOrphansList asserts that each kind of orphan is listed with what can be done.
func TestOrphansList(t *testing.T) {
	server := serve(t, "cluster.yaml")
	if have := server.run(t, nil, 0, "orphans", "node-31"); have.out != "" || !strings.Contains(have.err, "No volume is an orphan.") {
		t.Errorf("%+v", have)
	}
	stopReclaim(t, server)
	goldens(t, server, map[string][]string{"orphans": {"orphans"}})
	have := server.run(t, nil, 0, "orphans", "-o", "jsonpath={range.items[*]}{.owner}:{.commands[0]}{\"\\n\"}{end}")
	if want := "db/data-old-0:kubectl berth orphans adopt " + orphanID + "\nweb/cache-0:kubectl berth orphans confirm node-17 2\nweb/cache-1:kubectl berth orphans confirm node-17 2\n"; have.out != want {
		t.Errorf("%s%s", have.out, have.err)
	}
}

// TestCandidates asserts that only a device that waits for approval can be approved.
func TestCandidates(t *testing.T) {
	for state, can := range map[diskv1alpha1.DeviceState]bool{
		diskv1alpha1.DeviceCandidate: true, diskv1alpha1.DeviceInUse: false, diskv1alpha1.DeviceExcluded: false,
		diskv1alpha1.DeviceForeign: false, diskv1alpha1.DeviceBusy: false, diskv1alpha1.DeviceFailed: false,
	} {
		d := &inventory.Device{Node: "n", Device: diskv1alpha1.Device{Name: "sda", State: state, Fingerprint: "0123456789abcdef"}}
		if err := checkCandidate(d); (err == nil) != can {
			t.Errorf("%s: %v", state, err)
		}
		d.Fingerprint = ""
		if err := checkCandidate(d); err == nil {
			t.Errorf("%s without a fingerprint can be approved", state)
		}
	}
}

// TestForget asserts that only a disk that is gone is forgotten, with the flag that says what is lost. Disks that
// others want forgotten stay in the annotation.
func TestForget(t *testing.T) {
	server := serve(t, "cluster.yaml")
	const lost, other = "73dcb44c-9ba4-526c-a8fe-5b76b3d123b5", "73dcb44c-0000-526c-a8fe-5b76b3d123b5"
	for args, says := range map[string]string{
		"forget node-07 nvme1n1 --yes-lose-data": "node-07/nvme1n1 is Ready: only a disk that is gone can be forgotten",
		"forget node-17 nvme1n1":                 "give --yes-lose-data",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) || len(server.writes) > 0 {
			t.Errorf("%s: %+v", args, have)
		}
	}
	server.refuse = 1
	for i := range server.objects {
		if o := &server.objects[i]; o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-17" {
			o.SetAnnotations(map[string]string{diskv1alpha1.AnnotationForgetDisks: other})
		}
	}
	have := server.run(t, nil, 0, "forget", "node-17", "nvme1n1", "--yes-lose-data")
	if have.code != exitFine || !strings.Contains(have.out, "and the 2 volumes on it lost") || !strings.Contains(have.out, "db/data-es-1") {
		t.Errorf("%+v", have)
	}
	if last := server.writes[len(server.writes)-1].body; !strings.Contains(last, `"`+other+","+lost+`"`) || !strings.Contains(last, `"resourceVersion":"1003"`) {
		t.Errorf("it wrote %s", last)
	}
	server = serve(t, "cluster.yaml")
	for _, o := range server.objects {
		if o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-17" {
			device := map[string]any{"name": "nvme1n1", "disk": lost, "state": "Failed", "transport": "pcie", "size": int64(1 << 40)}
			if err := unstructured.SetNestedSlice(o.Object, []any{device}, "status", "devices"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if have := server.run(t, nil, 0, "forget", "node-17", "nvme1n1", "--yes-lose-data"); have.code != exitError || !strings.Contains(have.err, "take the drive out first") {
		t.Errorf("a disk that is there: %+v", have)
	}
}

// TestDrainState asserts what is said while a drain is awaited, and when that ends.
func TestDrainState(t *testing.T) {
	disk := target{node: "n", id: disk0, device: "sda"}
	drained := diskv1alpha1.NodeDiskCapacitySpec{Disks: []diskv1alpha1.DiskDecision{{ID: disk0, Drain: &diskv1alpha1.DiskDrain{}}}}
	for name, test := range map[string]struct {
		spec     diskv1alpha1.NodeDiskCapacitySpec
		progress *diskv1alpha1.DrainProgress
		gone     bool
		says     string
		done     bool
		fails    string
	}{
		"not begun":  {drained, nil, false, "The agent has not begun.", false, ""},
		"waits":      {drained, &diskv1alpha1.DrainProgress{Volumes: 2, Bytes: 1 << 30, Waiting: []diskv1alpha1.DrainWait{{Volume: "v", Message: "why"}}}, false, "2 volumes, 1Gi left\n  v: why", false, ""},
		"wipes":      {drained, &diskv1alpha1.DrainProgress{}, false, "what was on it is being wiped", false, ""},
		"done":       {drained, &diskv1alpha1.DrainProgress{Done: true}, false, "n/sda is drained: nothing is left on it.", true, ""},
		"undone":     {diskv1alpha1.NodeDiskCapacitySpec{}, nil, false, "", false, "another operator has ended it"},
		"without it": {drained, nil, true, "", false, "does not have disk"},
	} {
		ndc := &diskv1alpha1.NodeDiskCapacity{Spec: test.spec}
		if !test.gone {
			ndc.Status.Disks = []diskv1alpha1.Disk{{ID: disk0, Drain: test.progress}}
		}
		says, done, err := drainState(ndc, &disk)
		if says != test.says || done != test.done || (err != nil) != (test.fails != "") || err != nil && !strings.Contains(err.Error(), test.fails) {
			t.Errorf("%s: %q, %v, %v", name, says, done, err)
		}
	}
}
