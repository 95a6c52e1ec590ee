package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestForgetDisks asserts that the disks in the annotation are forgotten, and that it is removed from the version that
// was read. What an operator adds meanwhile is not lost.
func TestForgetDisks(t *testing.T) {
	const first, second, third = "11111111-2222-4333-8444-000000000001", "11111111-2222-4333-8444-000000000002", "11111111-2222-4333-8444-000000000003"
	live := &diskv1alpha1.NodeDiskCapacity{
		TypeMeta:   metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"},
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "1", Annotations: map[string]string{diskv1alpha1.AnnotationForgetDisks: " " + first + ",,other"}},
	}
	seen := live.DeepCopy()
	conflicts, patches := 1, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodPatch {
			var patch struct {
				Metadata struct{ ResourceVersion string }
			}
			if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
				t.Error(err)
			}
			if conflicts > 0 {
				// The operator names another disk.
				conflicts--
				live.ResourceVersion, live.Annotations[diskv1alpha1.AnnotationForgetDisks] = "2", first+","+second
			}
			if patch.Metadata.ResourceVersion != live.ResourceVersion {
				w.WriteHeader(http.StatusConflict)
				fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","code":409}`)
				return
			}
			live.Annotations = nil
			patches++
		}
		_ = json.NewEncoder(w).Encode(live)
	}))
	t.Cleanup(server.Close)
	c, err := client.New(&rest.Config{Host: server.URL}, "n1")
	if err != nil {
		t.Fatal(err)
	}
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{}, &diskv1alpha1.NodeDiskCapacity{}, 0, cache.Indexers{})
	if err := informer.GetStore().Add(seen); err != nil {
		t.Fatal(err)
	}
	a := &agent{
		options: Options{NodeName: "n1"}, client: c, capacities: informer, recorder: c.NewRecorder(),
		inventory: discovery.NewInventory(discovery.Options{
			Sys: fstest.MapFS{}, PublishedDisks: []diskv1alpha1.Disk{{ID: first}, {ID: second}, {ID: third}}, Now: time.Now,
		}),
	}
	if retry := a.forgetDisks(t.Context()); retry {
		t.Error("it is to be tried again")
	}
	var left []string
	for _, d := range a.inventory.Disks() {
		left = append(left, d.ID())
	}
	if !slices.Equal(left, []string{third}) || live.Annotations != nil {
		t.Errorf("known are %v, annotations %v", left, live.Annotations)
	}
	// A watch that is behind still shows the annotation.
	if retry := a.forgetDisks(t.Context()); retry || patches != 1 {
		t.Error("an annotation that is removed is acted on")
	}
	server.Close()
	if retry := a.forgetDisks(t.Context()); !retry {
		t.Error("without an API server it is not to be tried again")
	}
}

// TestOwnerOfNode asserts that the watch keeps the fields from which a disk's owner is made.
func TestOwnerOfNode(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}}
	node.Status.NodeInfo.MachineID = "m"
	kept, err := stripNode(node)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := kept.(*corev1.Node); !ok || ownerOf(n) != (disk.Owner{NodeUID: "u1", NodeName: "n1", MachineID: "m"}) {
		t.Errorf("kept is %+v", kept)
	}
	if ownerOf(&corev1.Node{}) != (disk.Owner{}) {
		t.Error("a node that is not there owns disks")
	}
}
