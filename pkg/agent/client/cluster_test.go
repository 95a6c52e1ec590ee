package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// TestNodeNamed asserts that only the API server's own answer proves that a Node is gone. The owner of a disk is looked
// up with it.
func TestNodeNamed(t *testing.T) {
	const asJSON = "application/json"
	notFound := apierrors.NewNotFound(corev1.Resource("nodes"), "n2").Status()
	notFound.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	node := func(name string) string {
		return encode(t, corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u"}})
	}
	for name, tc := range map[string]struct {
		code              int
		contentType, body string
		found, fails      bool
	}{
		"there":         {200, asJSON, node("n2"), true, false},
		"gone":          {404, asJSON, encode(t, notFound), false, false},
		"another":       {200, asJSON, node("n3"), false, true},
		"a proxy's 404": {404, "text/plain", "default backend - 404", false, true},
		"an error":      {500, "text/plain", "no", false, true},
	} {
		got, err := clientWithAnswer(t, tc.code, tc.contentType, tc.body).NodeNamed(t.Context(), "n2")
		if (got != nil) != tc.found || (err != nil) != tc.fails {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestAttachments asserts that the VolumeAttachments of the node are shown, from all pages.
func TestAttachments(t *testing.T) {
	page := func(next string, nodes ...string) *storagev1.VolumeAttachmentList {
		list := &storagev1.VolumeAttachmentList{
			TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "VolumeAttachmentList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1", Continue: next},
		}
		for _, n := range nodes {
			list.Items = append(list.Items, storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: n + next}, Spec: storagev1.VolumeAttachmentSpec{NodeName: n}})
		}
		return list
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := page("more", "node", "other")
		if r.URL.Query().Get("continue") == "more" {
			answer = page("", "other", "node")
		}
		if r.URL.Path != "/apis/storage.k8s.io/v1/volumeattachments" {
			w.WriteHeader(http.StatusBadRequest)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	c, err := New(&rest.Config{Host: server.URL}, "node")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := c.Attachments(t.Context(), func(v *storagev1.VolumeAttachment) { names = append(names, v.Name) }); err != nil || !slices.Equal(names, []string{"nodemore", "node"}) {
		t.Errorf("%v, %v", names, err)
	}
	none := clientWithAnswer(t, 200, "application/json", `{"apiVersion":"v1","kind":"Status","status":"Success"}`)
	if err := none.Attachments(t.Context(), func(*storagev1.VolumeAttachment) {}); err == nil {
		t.Error("an answer that is no list is taken for one")
	}
}

// TestRemoveForgetDisks asserts that the annotation is removed only from the version that was read.
func TestRemoveForgetDisks(t *testing.T) {
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"apiVersion":"disk.berth.dev/v1alpha1","kind":"NodeDiskCapacity","metadata":{"name":"node","uid":"1"}}`)
	}))
	t.Cleanup(server.Close)
	c, err := New(&rest.Config{Host: server.URL}, "node")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveForgetDisks(t.Context(), "7"); err != nil || !strings.Contains(body, `"disk.berth.dev/forget-disks":null`) || !strings.Contains(body, `"resourceVersion":"7"`) {
		t.Errorf("%v: %s", err, body)
	}
}
