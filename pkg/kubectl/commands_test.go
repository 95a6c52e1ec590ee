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
		"get disks --state broken":          "it can be Ready, Draining, Failed, Shared, NodeGone",
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
