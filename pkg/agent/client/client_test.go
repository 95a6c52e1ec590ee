package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// clientWithAnswer is a client of a server that gives the same answer to every request.
func clientWithAnswer(t *testing.T, code int, contentType, body string) *Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	c, err := New(&rest.Config{Host: server.URL}, "node")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func encode(t *testing.T, object any) string {
	t.Helper()
	b, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOnlyTheAPIServersNotFoundCounts asserts that only an API server's answer proves that a pod does not exist.
// Volumes are wiped because of it.
func TestOnlyTheAPIServersNotFoundCounts(t *testing.T) {
	const asJSON = "application/json"
	kind := func(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }
	notFound := apierrors.NewNotFound(corev1.Resource("pods"), "name").Status()
	notFound.TypeMeta = kind("Status")
	for name, tc := range map[string]struct {
		code            int
		contentType     string
		body            string
		gone, listFails bool
	}{
		"the API server":           {404, asJSON, encode(t, notFound), true, true},
		"a proxy's 404":            {404, "text/plain", "default backend - 404", false, true},
		"a proxy's 404 in JSON":    {404, asJSON, `{"error":"no such route"}`, false, true},
		"a page":                   {200, "text/html", "<html>", false, true},
		"success of something":     {200, asJSON, encode(t, metav1.Status{TypeMeta: kind("Status"), Status: "Success"}), false, true},
		"an empty pod":             {200, asJSON, encode(t, corev1.Pod{TypeMeta: kind("Pod")}), false, true},
		"another pod":              {200, asJSON, encode(t, corev1.Pod{TypeMeta: kind("Pod"), ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other", UID: "1"}}), false, true},
		"a list of no version":     {200, asJSON, encode(t, corev1.PodList{TypeMeta: kind("PodList")}), false, true},
		"an empty list, a version": {200, asJSON, encode(t, corev1.PodList{TypeMeta: kind("PodList"), ListMeta: metav1.ListMeta{ResourceVersion: "7"}}), false, false},
		"forbidden":                {403, asJSON, encode(t, metav1.Status{TypeMeta: kind("Status"), Status: "Failure", Reason: "Forbidden", Code: 403}), false, true},
		"gone":                     {410, asJSON, encode(t, metav1.Status{TypeMeta: kind("Status"), Status: "Failure", Reason: "Expired", Code: 410}), false, true},
		"a broken server":          {500, "text/plain", "", false, true},
	} {
		c := clientWithAnswer(t, tc.code, tc.contentType, tc.body)
		if _, err := c.Pod(t.Context(), "ns", "name"); err == nil || apierrors.IsNotFound(err) != tc.gone {
			t.Errorf("%s: pod: %v", name, err)
		}
		list := func(ctx context.Context) error { return c.PodsOfNode(ctx, func(*corev1.Pod) {}) }
		if err := list(t.Context()); (err != nil) != tc.listFails {
			t.Errorf("%s: list: %v", name, err)
		}
	}
}

// TestListPages asserts that all pages count, and that an error in one fails the whole list.
func TestListPages(t *testing.T) {
	pages := map[string]corev1.PodList{
		"":  {ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "a"}, Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "1"}}}},
		"a": {ListMeta: metav1.ListMeta{ResourceVersion: "7", Continue: "b"}, Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "2"}}}},
		"b": {ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "3"}}}},
	}
	fail := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := r.URL.Query().Get("continue")
		if fail != "" && at == fail {
			w.WriteHeader(http.StatusGone)
			return
		}
		page := pages[at]
		page.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(page)
	}))
	defer server.Close()
	c, err := New(&rest.Config{Host: server.URL}, "node")
	if err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	show := func(p *corev1.Pod) { seen.WriteString(p.Name) }
	if err := c.PodsOfNamespace(t.Context(), "ns", show); err != nil || seen.String() != "123" {
		t.Errorf("%q, %v", seen.String(), err)
	}
	fail = "b"
	if err := c.PodsOfNamespace(t.Context(), "ns", show); err == nil {
		t.Error("a list that is cut off counts")
	}
}

// TestOnlyTheAPIServersVolumeCounts asserts the same for PersistentVolumes.
func TestOnlyTheAPIServersVolumeCounts(t *testing.T) {
	const asJSON = "application/json"
	kind := func(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }
	notFound := apierrors.NewNotFound(corev1.Resource("persistentvolumes"), "name").Status()
	notFound.TypeMeta = kind("Status")
	for name, tc := range map[string]struct {
		code              int
		contentType, body string
		gone, there       bool
	}{
		"the API server":        {404, asJSON, encode(t, notFound), true, false},
		"the PersistentVolume":  {200, asJSON, encode(t, corev1.PersistentVolume{TypeMeta: kind("PersistentVolume"), ObjectMeta: metav1.ObjectMeta{Name: "name", UID: "1"}}), false, true},
		"another":               {200, asJSON, encode(t, corev1.PersistentVolume{TypeMeta: kind("PersistentVolume"), ObjectMeta: metav1.ObjectMeta{Name: "other", UID: "1"}}), false, false},
		"an empty one":          {200, asJSON, encode(t, corev1.PersistentVolume{TypeMeta: kind("PersistentVolume")}), false, false},
		"a proxy's 404":         {404, "text/plain", "default backend - 404", false, false},
		"a proxy's 404 in JSON": {404, asJSON, `{"error":"no such route"}`, false, false},
		"a page":                {200, "text/html", "<html>", false, false},
	} {
		c := clientWithAnswer(t, tc.code, tc.contentType, tc.body)
		pv, err := c.Volume(t.Context(), "name")
		if apierrors.IsNotFound(err) != tc.gone || (err == nil && pv.UID == "1") != tc.there {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFinalizers asserts that only our finalizer is added and removed, and only in the version that was read.
func TestFinalizers(t *testing.T) {
	var sent []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		sent = append(sent, r.Method+" "+string(body))
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, encode(t, corev1.PersistentVolume{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"}, ObjectMeta: metav1.ObjectMeta{Name: "name", UID: "1", ResourceVersion: "8"},
		}))
	}))
	t.Cleanup(server.Close)
	c, err := New(&rest.Config{Host: server.URL}, "node")
	if err != nil {
		t.Fatal(err)
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "name", UID: "1", ResourceVersion: "7", Finalizers: []string{"a", "disk.berth.dev/volume", "b"}}}
	if err := c.RemoveFinalizer(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddFinalizer(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	pv.Finalizers = []string{"a"}
	if err := c.RemoveFinalizer(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	if out, err := c.AddFinalizer(t.Context(), pv); err != nil || out.ResourceVersion != "8" {
		t.Fatal(out, err)
	}
	want := []string{
		`PATCH {"metadata":{"finalizers":["a","b"],"resourceVersion":"7","uid":"1"}}`,
		`PATCH {"metadata":{"finalizers":["a","disk.berth.dev/volume"],"resourceVersion":"7","uid":"1"}}`,
	}
	if !slices.Equal(sent, want) {
		t.Errorf("sent is %q, want %q", sent, want)
	}
}
