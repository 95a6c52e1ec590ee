package diskcapacity

import (
	"encoding/json"
	"net/http"
	"path"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/claim"
)

// TestUnseenVolumes asserts that a PersistentVolume that was made and deleted while the watch was interrupted is looked
// up and loses its place: there is no event of it. One that exists, or that could not be read, keeps its place.
func TestUnseenVolumes(t *testing.T) {
	exist := map[string]*corev1.PersistentVolume{}
	down, reads := false, 0
	b := benchOf(t, func(w http.ResponseWriter, r *http.Request) {
		reads++
		pv := exist[path.Base(r.URL.Path)]
		switch {
		case down:
			http.Error(w, "down", http.StatusInternalServerError)
		case pv == nil:
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(pv); err != nil {
				t.Error(err)
			}
		}
	}, nil, "n1")
	b.storageClass(t, "ssd", nil)
	b.publish(t, "n1", 10)
	f, volumes := b.plugin.feed, b.plugin.handle.ClientSet().CoreV1()
	made := func(name string, startGiB int64) *corev1.PersistentVolume {
		t.Helper()
		pv := b.volume(t, b.claim(t, name, "ssd", 2, nil), "n1", startGiB)
		pv.APIVersion, pv.Kind = "v1", "PersistentVolume"
		v, err := claim.ReadVolume(pv)
		if err != nil {
			t.Fatal(err)
		}
		f.ledger.AddVolume(string(pv.UID), pv.Name, "n1", RecordOf(v), nil)
		return pv
	}
	made("gone", 0)
	again := made("again", 2)
	again.UID = "another"
	exist[again.Name] = again
	stays := made("stays", 4)
	exist[stays.Name] = stays
	b.storeVolume(t, made("seen", 6))
	want := func(when string, freeGiB int64, wantReads int) {
		t.Helper()
		if have := b.freeGiB("n1"); have != freeGiB {
			t.Errorf("%s %d GiB are free, want %d", when, have, freeGiB)
		}
		if reads != wantReads {
			t.Errorf("%s there were %d reads, want %d", when, reads, wantReads)
		}
	}
	f.followUnseen(b.ctx, volumes, nil)
	b.runLater()
	want("before the watch had time", 2, 0)
	down = true
	b.runLater()
	want("while the API server is down", 2, 1)
	down = false
	b.runLater()
	want("when it is known", 6, 4)
	b.storeVolume(t, stays)
	b.runLater()
	want("when all are seen", 6, 4)
	if left := f.ledger.UnseenVolumes(); len(left) > 0 {
		t.Errorf("unseen are %v", left)
	}
	if err := f.volumes.Delete(stays); err != nil {
		t.Fatal(err)
	}
	f.foldVolume(klog.Background(), stays)
	want("when the one that stayed is deleted", 8, 4)
}
