package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// lacking says which capability we say we do not have, by what csi-sanity says when it
// skips a test for that. Any other skip fails the test.
var lacking = map[string]string{
	"Snapshot not supported":                            "CREATE_DELETE_SNAPSHOT",
	"CreateSnapshot not supported":                      "CREATE_DELETE_SNAPSHOT",
	"DeleteSnapshot not supported":                      "CREATE_DELETE_SNAPSHOT",
	"ListSnapshots not supported":                       "LIST_SNAPSHOTS",
	"GetSnapshot not supported":                         "GET_SNAPSHOT",
	"Volume Cloning not supported":                      "CLONE_VOLUME",
	"Modify volume not supported":                       "MODIFY_VOLUME",
	"Modify Volume not supported":                       "MODIFY_VOLUME",
	"ControllerModifyVolume not supported":              "MODIFY_VOLUME",
	"ControllerPublishVolume not supported":             "PUBLISH_UNPUBLISH_VOLUME",
	"ControllerUnpublishVolume not supported":           "PUBLISH_UNPUBLISH_VOLUME",
	"Controller Publish, UnpublishVolume not supported": "PUBLISH_UNPUBLISH_VOLUME",
	"GroupControllerService not supported":              "GROUP_CONTROLLER_SERVICE",
	// CSI 1.13, whose successor of the volume condition no kubelet asks for yet.
	"NodeGetVolumeHealth not supported":        "GET_VOLUME_HEALTH",
	"NodeGetStorageHealth not supported":       "GET_STORAGE_HEALTH",
	"ControllerGetVolumeHealth not supported":  "GET_VOLUME_HEALTH",
	"ControllerListVolumeHealth not supported": "LIST_VOLUME_HEALTH",
}

// disabled are tests that csi-sanity itself has turned off.
var disabled = []string{
	"pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted",
}

// spec is a test in csi-sanity's report.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	Failure                 struct {
		Message  string
		Location struct{ FileName, FullStackTrace string }
	}
}

func (s spec) String() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), ": ")
}

// The CSI project's own conformance test, against an agent as the kubelet and the stock
// sidecars would meet it: controller and node service on real disks.
func TestSanity(t *testing.T) {
	testenv.NeedRoot(t)
	program := buildSanity(t)
	for _, kind := range []struct {
		name, access, fsType string
		size, expanded       int64
	}{
		{"ext4", "mount", diskv1alpha1.FSTypeExt4, 64 * units.MiB, 160 * units.MiB},
		{"xfs", "mount", diskv1alpha1.FSTypeXFS, 304 * units.MiB, 400 * units.MiB},
		{"block", "block", "", 16 * units.MiB, 32 * units.MiB},
	} {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, 2*units.GiB, 2*units.GiB)
			n.start()
			n.ready()
			parameters := fmt.Sprintf("%s: %s\n", diskv1alpha1.AttributeClass, n.name)
			if kind.fsType != "" {
				parameters += fmt.Sprintf("%s: %s\n", diskv1alpha1.ParameterFSType, kind.fsType)
			}
			specs := n.sanity(program, parameters, "-csi.testvolumeaccesstype="+kind.access,
				fmt.Sprintf("-csi.testvolumesize=%d", kind.size), fmt.Sprintf("-csi.testvolumeexpandsize=%d", kind.expanded))
			judge(t, specs, n.capabilities())
			n.released()
		})
	}
}

// buildSanity builds csi-sanity, which is not a part of this module.
func buildSanity(t *testing.T) (program string) {
	t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(t.TempDir(), "csi-sanity")
	build := exec.Command("go", "build", "-C", filepath.Join(repository, "test", "sanity"), "-o", program, "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", build, err, out)
	}
	return program
}

// sanity runs csi-sanity and returns its report.
func (n *node) sanity(program, parameters string, arguments ...string) []spec {
	n.t.Helper()
	file, report := filepath.Join(n.dir, "parameters.yaml"), filepath.Join(n.dir, "report.json")
	if err := os.WriteFile(file, []byte(parameters), 0o600); err != nil {
		n.t.Fatal(err)
	}
	sanity := exec.Command(program, append([]string{
		"-csi.endpoint=unix://" + n.options.CSISocket,
		"-csi.mountdir=" + filepath.Join(n.dir, "mount"), "-csi.stagingdir=" + filepath.Join(n.dir, "staging"),
		"-csi.testvolumeparameters=" + file, "-ginkgo.no-color", "-ginkgo.json-report=" + report,
	}, arguments...)...)
	out, ended := sanity.CombinedOutput()
	content, err := os.ReadFile(report)
	if err != nil {
		n.t.Fatalf("csi-sanity has written no report: %v: %s", ended, out)
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(content, &suites); err != nil || len(suites) != 1 {
		n.t.Fatalf("the report of csi-sanity has %d suites: %v", len(suites), err)
	}
	if ended != nil {
		n.t.Errorf("csi-sanity: %v", ended)
	}
	return suites[0].SpecReports
}

// judge lists what was skipped, and holds that everything else has passed.
func judge(t *testing.T, specs []spec, capabilities []string) {
	t.Helper()
	passed, skips := 0, map[string]int{}
	for _, s := range specs {
		switch {
		case s.LeafNodeType != "It":
		case s.State == "passed":
			passed++
		case s.State == "skipped":
			skips[s.Failure.Message]++
			capability, known := lacking[s.Failure.Message]
			t.Logf("skipped, without %s: %s", capability, s)
			if !known {
				t.Errorf("%s: skipped for a reason that is not in the list: %s", s, s.Failure.Message)
			}
		case s.State == "pending" && slices.Contains(disabled, s.LeafNodeText):
			t.Logf("turned off by csi-sanity: %s", s)
		default:
			t.Errorf("%s: %s: %s\n%s", s, s.State, s.Failure.Message, s.Failure.Location.FullStackTrace)
		}
	}
	for message, capability := range lacking {
		if skips[message] == 0 {
			t.Errorf("nothing was skipped with %q: take it from the list", message)
		}
		if slices.Contains(capabilities, capability) {
			t.Errorf("we say that we have %s, and csi-sanity skips its tests", capability)
		}
	}
	t.Logf("%d tests of csi-sanity passed, with %s", passed, strings.Join(capabilities, ", "))
	if passed < len(capabilities) {
		t.Errorf("only %d tests passed", passed)
	}
}

// capabilities are all that the driver says that it has.
func (n *node) capabilities() []string {
	n.t.Helper()
	connection, err := grpc.NewClient("unix://"+n.options.CSISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	defer connection.Close()
	var all []string
	plugin, err := csispec.NewIdentityClient(connection).GetPluginCapabilities(n.t.Context(), &csispec.GetPluginCapabilitiesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range plugin.Capabilities {
		if c.GetService() != nil {
			all = append(all, c.GetService().Type.String())
		}
	}
	controller, err := csispec.NewControllerClient(connection).ControllerGetCapabilities(n.t.Context(), &csispec.ControllerGetCapabilitiesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range controller.Capabilities {
		all = append(all, c.GetRpc().Type.String())
	}
	node, err := n.csi().NodeGetCapabilities(n.t.Context(), &csispec.NodeGetCapabilitiesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range node.Capabilities {
		all = append(all, c.GetRpc().Type.String())
	}
	return all
}
