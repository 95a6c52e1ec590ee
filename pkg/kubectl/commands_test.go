package kubectl

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// TestOutputs asserts the other forms of a list.
func TestOutputs(t *testing.T) {
	server := serve(t, "cluster.yaml")
	var list struct {
		Kind  string
		Items []struct {
			Kind     string
			Metadata struct{ Name string }
			Device   string
			Free     int64
			State    string
		}
	}
	have := server.run(t, nil, 80, "get", "disks", "--node", "node-07", "-o", "json")
	if err := json.Unmarshal([]byte(have.out), &list); err != nil || have.code != exitFine {
		t.Fatalf("%v, code %d: %s", err, have.code, have.out+have.err)
	}
	if len(list.Items) != 2 || list.Kind != "DiskList" || list.Items[0].Metadata.Name != "node-07/nvme0n1" || list.Items[0].Free < 600<<30 || list.Items[1].Device != "nvme1n1" {
		t.Errorf("got %+v", list)
	}
	for _, test := range []struct{ args, want string }{
		{"get disks --node node-07 -o name", "node-07/nvme0n1\nnode-07/nvme1n1\n"},
		{"get disks --state failed,nodegone -o name", "node-17/nvme1n1\nnode-99/nvme0n1\n"},
		{"get disks --class hdd -o jsonpath={.items[*].size}", "8001563222016"},
		{"get volumes --owner logs/ -o jsonpath={.items[*].owner}", "logs/loki-2"},
		{"get volumes --owner logs/ -o jsonpath={.items[*].volumeKind}", "inline"},
		{"get volumes --owner db/data-pg-1 -o jsonpath={.items[*].growsTo}", "536870912000"},
		{"get volumes --state orphan -o jsonpath={.items[*].owner}", "db/data-old-0"},
		{"get devices --state candidate -o jsonpath={.items[*].serial}", "AWS22F1C0"},
		{"get wipes -o jsonpath={.items[*].wiped}", "26401046528"},
		{"get class -o name", "hdd\nssd\n"},
		{"get classes --class ssd -o go-template={{range.items}}{{.disks}}/{{.inService}}{{end}}", "13/11"},
		{"version", "kubectl-berth v0.0.0-master+$Format:%H$\nAPI server    v1.36.3\n"},
	} {
		have := server.run(t, nil, 80, strings.Fields(test.args)...)
		if have.code != exitFine || have.out != test.want {
			t.Errorf("%s: got %q, %q, code %d", test.args, have.out, have.err, have.code)
		}
	}
	if have := server.run(t, nil, 0, "get", "wipes", "--no-headers"); strings.Contains(have.out, "POLICY") || !strings.Contains(have.out, "build-5512") {
		t.Errorf("got %s", have.out)
	}
	if have := server.run(t, nil, 0, "get", "disks", "-o", "yaml", "--node", "node-29"); !strings.Contains(have.out, "device: sda\n") {
		t.Errorf("got %s", have.out)
	}
}

// TestMistakes asserts what mistakes of users get.
func TestMistakes(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for args, says := range map[string]string{
		"map node-1000":                     "node node-1000 has no NodeDiskCapacity",
		"map node-07/sdz":                   "node node-07 has no disk of Berth on device sdz",
		"map --sort size":                   "it can be node, frag, largest, fill, free",
		"map --class nvme":                  "no node has a disk of class nvme",
		"map --color sometimes":             "it can be auto, always or never",
		"map a b":                           "accepts at most 1 arg(s)",
		"get disks --state broken":          "it can be Ready, Cordoned, Draining, Failed, Shared, NodeGone",
		"get disks -o picture":              `unable to match a printer suitable for the output format "picture"`,
		"map node-07 --html x.html --watch": "--html and --watch exclude each other",
	} {
		have := server.run(t, nil, 80, strings.Fields(args)...)
		if have.code != exitError || !strings.Contains(have.err, says) || have.out != "" {
			t.Errorf("%s: got %q, %q, code %d", args, have.out, have.err, have.code)
		}
	}
	server.objects = slices.DeleteFunc(server.objects, func(o unstructured.Unstructured) bool { return o.GetKind() == "NodeDiskCapacity" })
	if have := server.run(t, nil, 80, "get", "disks"); have.code != exitFine || have.out != "" || !strings.Contains(have.err, "No disks are listed") {
		t.Errorf("without disks: %+v", have)
	}
	delete(resources, "nodediskcapacities")
	t.Cleanup(func() { resources["nodediskcapacities"] = "NodeDiskCapacity" })
	if have := server.run(t, nil, 80, "map"); have.code != exitError || !strings.Contains(have.err, "is it installed in this cluster?") {
		t.Errorf("without the CRD: %+v", have)
	}
}

// TestWithoutPods asserts that a node is drawn without the right to read pods, without the names that pods give.
func TestWithoutPods(t *testing.T) {
	server := serve(t, "cluster.yaml")
	server.forbidden = []string{"pods"}
	have := server.run(t, nil, 80, "map", "node-07")
	if have.code != exitFine || strings.Contains(have.out, "loki-2 data") || !strings.Contains(have.out, "logs/loki-2 ") {
		t.Errorf("got %+v", have)
	}
}

// TestPage asserts that the page has all disks and volumes, loads nothing, and escapes what it shows.
func TestPage(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for i := range server.objects {
		if o := &server.objects[i]; o.GetKind() == "NodeDiskCapacity" && o.GetName() == "node-17" {
			disks, _, _ := unstructured.NestedFieldNoCopy(o.Object, "status", "disks")
			disks.([]any)[1].(map[string]any)["message"] = "<script>alert(1)</script>"
		}
	}
	path := filepath.Join(t.TempDir(), "disks.html")
	have := server.run(t, nil, 80, "map", "--html", path)
	if have.code != exitFine || have.out != path+": 14 disks on 7 nodes, 58 volumes\n" {
		t.Fatalf("got %+v", have)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, want := range []string{"<h2>node-07</h2>", "db/data-pg-1: 400Gi volume at 200Gi", "can grow in place to 500Gi", "&lt;script&gt;", "default-src &#39;none&#39;"} {
		if !strings.Contains(strings.ReplaceAll(page, "'none'", "&#39;none&#39;"), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if found := regexp.MustCompile(`(?i)<script|src=|href=|url\(|@import|ZgotmplZ`).FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the page can be read by others: %v, %v", info.Mode(), err)
	}
	one := server.run(t, nil, 80, "map", "node-07/nvme1n1", "--html", path)
	if one.out != path+": 1 disk on 1 node, 2 volumes\n" {
		t.Errorf("got %+v", one)
	}
}

// TestCompletion asserts what a shell is offered, and that kubectl can ask for it.
func TestCompletion(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for args, want := range map[string]string{
		"map node-0":              "node-07\n:4\n",
		"map node-07/":            "node-07/nvme0n1\nnode-07/nvme1n1\n:4\n",
		"map --class s":           "ssd\n:4\n",
		"map --sort f":            "node\nfrag\nlargest\nfill\nfree\n:4\n",
		"get disks --node node-1": "node-11\nnode-17\n:4\n",
		"cordon node-0":           "node-07\n:4\n",
		"drain node-07 nvme1":     "nvme1n1\n:4\n",
		"adopt node-43/":          "node-43/nvme1n1\n:4\n",
		"orphans release pvc-":    orphanID + "\n:4\n",
	} {
		have := server.run(t, nil, 80, append([]string{cobra.ShellCompNoDescRequestCmd}, strings.Fields(args)...)...)
		if have.out != want {
			t.Errorf("%s: got %q, want %q", args, have.out, want)
		}
	}
	var out bytes.Buffer
	code := Run(t.Context(), []string{"/usr/bin/" + completionName, "ma"}, genericiooptions.IOStreams{In: new(bytes.Buffer), Out: &out, ErrOut: io.Discard})
	if code != exitFine || !strings.HasPrefix(out.String(), "map\tDraw disks") {
		t.Errorf("code %d, got %q", code, out.String())
	}
}

// TestWatch asserts that a drawing is made again after changes, once for several that come together, and that the end
// of the user ends it.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan watch.Event, 3)
	events <- watch.Event{Type: watch.Bookmark}
	events <- watch.Event{Type: watch.Modified}
	events <- watch.Event{Type: watch.Modified}
	if err := awaitChange(ctx, events); err != nil || len(events) != 0 {
		t.Errorf("got %v, %d events are left", err, len(events))
	}
	cancel()
	if err := awaitChange(ctx, events); err == nil {
		t.Error("it waits for ever")
	}
	close(events)
	if err := awaitChange(t.Context(), events); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("got %v", err)
	}
}

// TestExplain asserts what is said of single objects.
func TestExplain(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for args, wants := range map[string][]string{
		"explain pod kafka-3 -n db": {
			"db/kafka-3 waits since 22m: it fits on none of 7 nodes.", "with its headroom it looks for 750Gi in one piece", "on a disk apart (spread: disk)",
			"largest free extent of class ssd is below 750Gi", "node-17: 588.4Gi, 161.5Gi short", "taint dedicated=ml:NoSchedule", "node-35 has the room",
			"headroom   without it, the volumes fit on 1 node, such as node-07",
		},
		"explain pod build-8 -n ci":                                    {"no node can take it", `DiskClass "nvme" does not exist: there are hdd, ssd`},
		"explain pod build-9 -n ci":                                    {"ci/build-9 waits since 1s, and fits on 4 of 7 nodes", "The best node for its volumes is node-11", "WHY NOT ON THE OTHERS"},
		"explain pod pg-1 -n db":                                       {"db/pg-1 is on node-07 since 12d.", "data  400Gi  nvme0n1 at 200Gi  of ssd, claim, can grow in place to 500Gi"},
		"explain pod -A --pending":                                     {"db/kafka-3  22m", "ci/build-8  60s"},
		"explain pvc data-kafka-3 -n db":                               {"it gets one with its pod kafka-3", "fits on none"},
		"explain pvc data-pg-1 -n db":                                  {"Claim db/data-pg-1 is bound to", "node-07/nvme0n1 at 200Gi, 400Gi, formatted, can grow in place to 500Gi"},
		"explain disk node-17/nvme1n1":                                 {"takes no volumes, it is Failed: the device hangs", "holds 2 volumes"},
		"explain disk node-07/nvme0n1":                                 {"takes volumes of class ssd: up to 512Gi in one piece, 612.4Gi in all"},
		"explain disk node-43/nvme0n1":                                 {"is no disk of Berth: it is Busy", "the device is mounted at /"},
		"explain node node-29":                                         {"Node node-29 takes no volumes.", "✗ its agent is not registered with the kubelet"},
		"explain node node-35":                                         {"Node node-35 takes volumes.", "! it has the taint dedicated=ml:NoSchedule"},
		"explain node node-99":                                         {"takes no volumes", "✗ there is no Node of this name"},
		"fit --class ssd --size 4Ti":                                   {"Fits on none of 5 nodes with disks of class ssd", "no disk of class ssd could ever hold 4Ti"},
		"fit --class hdd --size 1Ti":                                   {"No node has a disk of class hdd in service."},
		"fit --class ssd --size 500Gi --headroom 250Gi --node node-35": {"Fits on 1 of 1 node", "leaves", "There is room for 6 such pods"},
		"fit --like train-9 -n ml":                                     {"Another pod like ml/train-9 fits on none of 7 nodes", "largest free extent of class ssd is below 1Ti"},
		"fit --like pg-1 -n db":                                        {"Another pod like db/pg-1 fits on none", "with its headroom it looks for 600Gi"},
	} {
		have := server.run(t, nil, 0, strings.Fields(args)...)
		for _, want := range wants {
			if have.code != exitFine || !strings.Contains(have.out, want) {
				t.Errorf("%s, code %d: no %q in\n%s%s", args, have.code, want, have.out, have.err)
			}
		}
	}
	for args, says := range map[string]string{
		"explain pod":                          "name a pod, or give --pending",
		"explain pod no -n db":                 `reading pod db/no`,
		"explain disk node-07":                 "name the disk as NODE/DEVICE",
		"explain node nowhere":                 "neither a Node nor a NodeDiskCapacity",
		"fit --class ssd":                      "give --class and --size",
		"fit --class nvme --size 1Gi":          `DiskClass "nvme" does not exist`,
		"fit --class ssd --size much":          "which is not a size",
		"fit --class ssd --size 1Gi --count 0": "it can be 1 to 256",
		"fit --class ssd --size 1Gi --node x":  "there is no node x",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: code %d, %q", args, have.code, have.err)
		}
	}
}

// TestStatusCode asserts the exit code of a cluster that needs nothing, and of one that does.
func TestStatusCode(t *testing.T) {
	server := serve(t, "cluster.yaml")
	if have := server.run(t, nil, 0, "status"); have.code != exitNeedsOperator || !strings.Contains(have.out, "NEEDS YOU") || have.err != "" {
		t.Errorf("code %d: %s%s", have.code, have.out, have.err)
	}
	healthy := map[string]bool{"NodeDiskCapacity/node-31": true, "NodeDiskCapacity/node-35": true}
	server.objects = slices.DeleteFunc(server.objects, func(o unstructured.Unstructured) bool {
		return o.GetKind() == "Pod" || o.GetKind() == "NodeDiskCapacity" && !healthy[o.GetKind()+"/"+o.GetName()]
	})
	if have := server.run(t, nil, 0, "status"); have.code != exitFine || strings.Contains(have.out, "NEEDS YOU") {
		t.Errorf("code %d: %s%s", have.code, have.out, have.err)
	}
}
