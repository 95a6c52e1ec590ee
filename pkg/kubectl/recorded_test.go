package kubectl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// recorded serves recorded objects as an API server does. It keeps the writes that it was sent.
type recorded struct {
	*httptest.Server
	mu      sync.Mutex
	objects []unstructured.Unstructured
	// forbidden are resources that may not be read, and unserved those of Berth that the API does not have.
	forbidden, unserved []string
	// refuse is how many writes are refused with a conflict, and pruned are fields that the API server does not keep.
	refuse int
	pruned []string
	// created is the last object that was created, whether it was stored or not.
	created unstructured.Unstructured
	// read are the paths of all requests for objects.
	read   []string
	writes []write
}

// write is a request that would change something.
type write struct {
	method, path, query, body string
}

// resources are the kinds that the server serves, by the last part of their path.
var resources = map[string]string{
	"nodediskcapacities": "NodeDiskCapacity", "diskclasses": "DiskClass", "nodes": "Node", "csinodes": "CSINode", "pods": "Pod",
	"persistentvolumes": "PersistentVolume", "persistentvolumeclaims": "PersistentVolumeClaim", "storageclasses": "StorageClass",
	"daemonsets": "DaemonSet", "deployments": "Deployment", "events": "Event", "csidrivers": "CSIDriver", "secrets": "Secret",
	"validatingadmissionpolicies": "ValidatingAdmissionPolicy", "validatingadmissionpolicybindings": "ValidatingAdmissionPolicyBinding",
}

// serve starts a server with the objects of files of testdata.
func serve(t testing.TB, files ...string) *recorded {
	t.Helper()
	r := &recorded{}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(part), &object); err != nil {
				t.Fatal(err)
			}
			r.objects = append(r.objects, unstructured.Unstructured{Object: object})
		}
	}
	r.Server = httptest.NewServer(http.HandlerFunc(r.answer))
	t.Cleanup(r.Close)
	return r
}

func (r *recorded) answer(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if request.URL.Path == "/version" {
		r.reply(w, http.StatusOK, map[string]any{"major": "1", "minor": "36", "gitVersion": "v1.36.3"})
		return
	}
	if request.URL.Path == "/apis/disk.berth.dev/v1alpha1" {
		list := map[string]any{"kind": "APIResourceList", "groupVersion": "disk.berth.dev/v1alpha1"}
		var served []map[string]any
		for _, name := range []string{"nodediskcapacities", "nodediskcapacities/status", "diskclasses", "diskclasses/status"} {
			if !slices.Contains(r.unserved, name) {
				served = append(served, map[string]any{"name": name, "kind": "Any", "verbs": []string{"get"}})
			}
		}
		list["resources"] = served
		r.reply(w, http.StatusOK, list)
		return
	}
	r.read = append(r.read, request.URL.Path)
	if strings.HasSuffix(request.URL.Path, "/log") {
		if slices.Contains(r.forbidden, "pods/log") {
			r.fail(w, http.StatusForbidden, "Forbidden", "pods", "log")
			return
		}
		fmt.Fprintf(w, "log of %s %s\n", request.URL.Path, request.URL.RawQuery)
		return
	}
	namespace, resource, name := splitRequest(request.URL.Path)
	if request.Method != http.MethodGet {
		r.change(w, request, resource, name)
		return
	}
	kind := resources[resource]
	switch {
	case kind == "":
		r.fail(w, http.StatusNotFound, "NotFound", "", "")
		return
	case slices.Contains(r.forbidden, resource):
		r.fail(w, http.StatusForbidden, "Forbidden", resource, name)
		return
	}
	var found []unstructured.Unstructured
	for _, o := range r.objects {
		if o.GetKind() == kind && (namespace == "" || o.GetNamespace() == namespace) && (name == "" || o.GetName() == name) && selected(request, &o) {
			found = append(found, o)
		}
	}
	switch {
	case name == "":
		list := &unstructured.UnstructuredList{Items: found}
		list.SetKind(kind + "List")
		list.SetResourceVersion("5000")
		list.SetAPIVersion(versionOf(request.URL.Path))
		r.reply(w, http.StatusOK, list)
	case len(found) == 0:
		r.fail(w, http.StatusNotFound, "NotFound", resource, name)
	default:
		r.reply(w, http.StatusOK, &found[0])
	}
}

// change serves a request that writes: a merge patch, the creation or the deletion of an object.
func (r *recorded) change(w http.ResponseWriter, request *http.Request, resource, name string) {
	body := new(bytes.Buffer)
	_, _ = body.ReadFrom(request.Body)
	sent := map[string]any{}
	if request.Header.Get("Content-Type") != "application/vnd.kubernetes.protobuf" {
		_ = json.Unmarshal(body.Bytes(), &sent)
	}
	dryRun := strings.Contains(request.URL.RawQuery+body.String(), "dryRun=All")
	if resource == "selfsubjectreviews" {
		r.reply(w, http.StatusCreated, map[string]any{
			"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "status": map[string]any{"userInfo": map[string]any{"username": "anna@example.org"}},
		})
		return
	}
	r.writes = append(r.writes, write{request.Method, request.URL.Path, request.URL.RawQuery, body.String()})
	if r.refuse > 0 {
		r.refuse--
		r.fail(w, http.StatusConflict, "Conflict", resource, name)
		return
	}
	at := slices.IndexFunc(r.objects, func(o unstructured.Unstructured) bool {
		return o.GetKind() == resources[resource] && o.GetName() == name
	})
	switch {
	case request.Method == http.MethodPost:
		if err := r.create(body.Bytes(), resource, dryRun); err != nil {
			r.fail(w, http.StatusBadRequest, "BadRequest", resource, err.Error())
			return
		}
		r.reply(w, http.StatusCreated, r.created.Object)
	case at < 0:
		r.fail(w, http.StatusNotFound, "NotFound", resource, name)
	case request.Method == http.MethodDelete:
		r.objects = slices.Delete(r.objects, at, at+1)
		r.reply(w, http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	default:
		object := r.objects[at].DeepCopy().Object
		merge(object, sent)
		for _, field := range r.pruned {
			unstructured.RemoveNestedField(object, strings.Split(field, ".")...)
		}
		if version, _, _ := unstructured.NestedString(sent, "metadata", "resourceVersion"); version != "" && version != r.objects[at].GetResourceVersion() {
			r.fail(w, http.StatusConflict, "Conflict", resource, name)
			return
		}
		if !dryRun {
			r.objects[at] = unstructured.Unstructured{Object: object}
		}
		r.reply(w, http.StatusOK, object)
	}
}

// merge is a JSON merge patch.
func merge(into, patch map[string]any) {
	for key, value := range patch {
		inner, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case isMap:
			below, ok := into[key].(map[string]any)
			if !ok {
				below = map[string]any{}
				into[key] = below
			}
			merge(below, inner)
		default:
			into[key] = value
		}
	}
}

// create stores an object. kubectl's clients send JSON and protobuf.
func (r *recorded) create(body []byte, resource string, dryRun bool) error {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return err
	}
	r.created = unstructured.Unstructured{Object: content}
	r.created.SetKind(resources[resource])
	r.created.SetAPIVersion("v1")
	r.created.SetUID("made")
	if !dryRun {
		r.objects = append(r.objects, r.created)
	}
	return nil
}

// versionOf is the apiVersion in a path.
func versionOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] == "apis" && len(parts) > 2 {
		return parts[1] + "/" + parts[2]
	}
	return "v1"
}

// splitRequest splits /api/v1/... and /apis/GROUP/VERSION/...
func splitRequest(path string) (namespace, resource, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	parts = parts[min(skip, len(parts)):]
	if len(parts) > 2 && parts[0] == "namespaces" {
		namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 0 {
		resource = parts[0]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return namespace, resource, name
}

// selected reports whether an object matches the selectors of a request.
func selected(request *http.Request, o *unstructured.Unstructured) bool {
	query := request.URL.Query()
	byField, err := fields.ParseSelector(query.Get("fieldSelector"))
	if err != nil {
		return false
	}
	byLabel, err := labels.Parse(query.Get("labelSelector"))
	if err != nil || !byLabel.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	for _, r := range byField.Requirements() {
		have, _, _ := unstructured.NestedString(o.Object, strings.Split(r.Field, ".")...)
		if (have == r.Value) != (r.Operator == "=" || r.Operator == "==") {
			return false
		}
	}
	return true
}

func (r *recorded) reply(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(value)
}

func (r *recorded) fail(w http.ResponseWriter, code int, reason, resource, name string) {
	r.reply(w, code, map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
		"message": fmt.Sprintf("%s %q: %s", resource, name, reason), "details": map[string]any{"kind": resource, "name": name},
	})
}

// now is when the recorded cluster was read.
var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// outcome is what a command has printed, and its exit code.
type outcome struct {
	out, err string
	code     int
}

// run runs a command line against the server. environment has variables of the environment.
func (r *recorded) run(t testing.TB, environment map[string]string, width int, args ...string) outcome {
	t.Helper()
	var out, errOut bytes.Buffer
	config := genericclioptions.NewConfigFlags(false)
	config.APIServer = &r.URL
	s := &session{
		IOStreams: genericiooptions.IOStreams{In: new(bytes.Buffer), Out: &out, ErrOut: &errOut}, config: config,
		now: func() time.Time { return now }, getenv: func(key string) string { return environment[key] }, width: width,
	}
	root := newCommand(s)
	root.SetArgs(args)
	code := exitCode(t.Context(), s, root)
	return outcome{out.String(), errOut.String(), code}
}
