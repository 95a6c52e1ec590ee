package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// several makes pods with a small volume each, and waits until those are formatted.
func (n *node) several(name string, count int) []*corev1.Pod {
	n.t.Helper()
	var pods []*corev1.Pod
	for i := range count {
		pods = append(pods, n.pod(fmt.Sprintf("%s%d", name, i), "", nil, n.volumeOf("data", "8Mi", "")))
	}
	for _, p := range pods {
		n.formatted(p, "data")
	}
	return pods
}

// condition is that of the published status; its Status is empty if there is none.
func condition(s *diskv1alpha1.NodeDiskCapacityStatus, kind string) metav1.Condition {
	if c := meta.FindStatusCondition(s.Conditions, kind); c != nil {
		return *c
	}
	return metav1.Condition{}
}

// listsOrphans waits until so many volumes are published as orphans, one by one and in the condition.
func (n *node) listsOrphans(count int) {
	n.t.Helper()
	n.published(fmt.Sprintf("%d orphans are listed", count), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		listed, c := 0, condition(s, diskv1alpha1.ConditionOrphanedVolumes)
		for _, d := range s.Disks {
			for _, a := range d.Allocations {
				if a.OrphanedSince == nil {
					continue
				}
				listed++
				if !strings.Contains(c.Message, a.Partition) {
					return fmt.Errorf("%s is not in the message", a.Partition)
				}
			}
		}
		if listed != count || (c.Status == metav1.ConditionTrue) != (count > 0) {
			return fmt.Errorf("%d are", listed)
		}
		return nil
	})
}

// reclaimStops waits until reclaiming is, or is not, published as stopped.
func (n *node) reclaimStops(stopped bool, says string) {
	n.t.Helper()
	n.published(fmt.Sprintf("reclaiming is stopped: %v", stopped), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		c := condition(s, diskv1alpha1.ConditionReclaimStopped)
		if (c.Status == metav1.ConditionTrue) != stopped || !strings.Contains(c.Message, says) {
			return fmt.Errorf("condition is %+v", c)
		}
		return nil
	})
}

func (n *node) countVolumes() int32 {
	n.t.Helper()
	ndc, err := n.ndc()
	if err != nil {
		n.t.Fatal(err)
	}
	return ndc.Status.Summary.Volumes
}

// TestAgentOrphans: a volume whose pod went while no agent ran is listed, reported, and
// wiped when the grace period is over.
func TestAgentOrphans(t *testing.T) {
	n := newNode(t, units.GiB)
	n.options.OrphanGrace = time.Hour
	n.start()
	n.ready()
	pods := n.several("goes", 3)
	stays := n.several("stays", 1)[0]
	n.stop()
	for _, p := range pods {
		n.delete(p)
	}
	n.start()
	n.listsOrphans(3)
	n.capacityEvent("VolumeOrphaned", diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pods[0].UID, "data")))
	n.reclaimStops(false, "grace period")
	n.never("an orphan is wiped within the grace period", time.Second, func() error {
		if n.countVolumes() == 4 {
			return errors.New("it is not")
		}
		return nil
	})
	if got := metric(t, "berth_node_orphaned_volumes", map[string]string{"kind": "ephemeral"}); got != 3 {
		t.Errorf("%v orphans are counted", got)
	}
	n.stop()
	n.options.OrphanGrace = time.Second
	n.start()
	n.published("the orphans are reclaimed, and nothing else", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 1 {
			return fmt.Errorf("%d volumes", s.Summary.Volumes)
		}
		return nil
	})
	n.listsOrphans(0)
	n.formatted(stays, "data")
}

// TestAgentManyOrphans: when many pods vanish at once it is the API server that is doubted:
// nothing is wiped, over a restart too, until an operator allows how many may go. Pods that
// were seen to go are many and no reason for doubt.
func TestAgentManyOrphans(t *testing.T) {
	n := newNode(t, units.GiB)
	n.options.OrphanGrace = 200 * time.Millisecond
	n.options.OrphanLimit = 4
	gate := newGate(t, n.options.Config)
	forgetful := &forgetful{}
	n.options.Config = forgetful.into(gate.config(t, n.options.Config))
	n.start()
	status := n.ready()

	// An operator deletes a namespace, as it were.
	for _, p := range n.several("seen", 8) {
		n.delete(p)
	}
	n.released()
	n.reclaimStops(false, "")

	// An API server that was emptied: from one answer to the next the pods are not there.
	const lost = 6
	pods := n.several("lost", lost)
	kept := n.bound("kept", "8Mi", corev1.PersistentVolumeFilesystem, &status.Disks[0], status.Disks[0].Free[0].Start+512*units.MiB)
	n.realized(kept)
	if err := n.publish(pods[0], "data"); err != nil {
		t.Fatal(err)
	}
	gate.shut(t)
	for _, p := range pods {
		n.delete(p)
	}
	forgetful.forgets.Store(true)
	gate.open(t)
	n.reclaimStops(true, fmt.Sprintf("%s=%d", diskv1alpha1.AnnotationReclaimOrphans, lost))
	n.capacityEvent("ReclaimStopped", fmt.Sprintf("%d volumes have lost their pods", lost))
	n.listsOrphans(lost)
	keeps := func(what string) {
		n.t.Helper()
		n.never(what, time.Second, func() error {
			if n.countVolumes() == lost+1 {
				return errors.New("it is not")
			}
			return nil
		})
	}
	keeps("one of many orphans is wiped")
	n.unpublish(pods[0], "data")
	keeps("one of many orphans is wiped when it is unmounted")
	n.stop()
	n.start()
	n.reclaimStops(true, "")
	keeps("one of many orphans is wiped after a restart")

	// A confirmation that is out of date counts for nothing, and not later either.
	n.allow("3")
	n.capacityEvent("ReclaimStopped", fmt.Sprintf("allowed 3 volumes, by now there are %d", lost))
	n.allow("all")
	keeps("an operator's permission for fewer is taken for more")

	if err := n.publish(pods[0], "data"); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a volume whose pod is gone is published: %v", err)
	}
	n.allow(strconv.Itoa(lost))
	n.published("the orphans are wiped, and the volume of the PersistentVolume is not", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 1 {
			return fmt.Errorf("%d volumes", s.Summary.Volumes)
		}
		return nil
	})
	n.reclaimStops(false, "")
	n.realized(kept)
	t.Logf("8 volumes of pods that were seen to go were wiped at once; %d of pods that vanished were kept, over a restart, until an operator allowed %d", lost, lost)
}

// TestAgentOutage: the volumes of many pods that went while the agent was down are reclaimed, as
// the API server is the one that the node knows. They are kept when it has lost its data.
func TestAgentOutage(t *testing.T) {
	n := newNode(t, units.GiB)
	n.options.OrphanGrace = 200 * time.Millisecond
	n.options.OrphanLimit = 4
	n.start()
	n.ready()
	lost := n.several("lost", 6)
	// It has known the API server for an hour.
	file := filepath.Join(filepath.Dir(n.options.CSISocket), "api-server.json")
	known := map[string]string{}
	n.eventually("the agent notes what it knows of the API server", func() error {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(content, &known)
	})
	n.stop()
	content, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(content, &known)
	}
	if err != nil || known["capacity"] == "" || known["doubt"] == "" {
		t.Fatalf("noted is %s, %v", content, err)
	}
	delete(known, "doubt")
	if content, err = json.Marshal(known); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range lost {
		n.delete(p)
	}
	n.start()
	n.released()
	n.reclaimStops(false, "")

	lost = n.several("emptied", 6)
	n.stop()
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.client.Delete(t.Context(), ndc); err != nil {
		t.Fatal(err)
	}
	for _, p := range lost {
		n.delete(p)
	}
	n.start()
	n.reclaimStops(true, fmt.Sprintf("%s=6", diskv1alpha1.AnnotationReclaimOrphans))
	// There is none until the agent has made another one; the reason says the one or the other.
	n.capacityEvent("ReclaimStopped", "NodeDiskCapacity of this node")
	if got := n.countVolumes(); got != 6 {
		t.Errorf("%d volumes are left", got)
	}
}

// forgetful is an API server that does not remember what happened to pods since it was
// asked last, as after its data was replaced: watches must begin again.
type forgetful struct {
	next    http.RoundTripper
	forgets atomic.Bool
}

func (f *forgetful) into(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { f.next = next; return f })
	return config
}

func (f *forgetful) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.URL.Query()
	resumed := q.Get("watch") != "" && q.Get("sendInitialEvents") == "" && strings.HasSuffix(r.URL.Path, "/pods")
	if !resumed || !f.forgets.CompareAndSwap(true, false) {
		return f.next.RoundTrip(r)
	}
	body := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"forgotten on purpose","code":410}`
	return &http.Response{
		StatusCode: http.StatusGone, Request: r, Body: io.NopCloser(bytes.NewBufferString(body)),
		Header: http.Header{"Content-Type": []string{"application/json"}},
	}, nil
}

// allow writes an operator's permission into the NodeDiskCapacity, and waits until the agent has taken it off.
func (n *node) allow(count string) {
	n.t.Helper()
	ndc, err := n.ndc()
	if err != nil {
		n.t.Fatal(err)
	}
	n.edit(ndc, func() { metav1.SetMetaDataAnnotation(&ndc.ObjectMeta, diskv1alpha1.AnnotationReclaimOrphans, count) })
	n.eventually("the annotation is taken off", func() error {
		now, err := n.ndc()
		if err != nil {
			return err
		}
		if _, there := now.Annotations[diskv1alpha1.AnnotationReclaimOrphans]; there {
			return errors.New("it is there")
		}
		return nil
	})
}
