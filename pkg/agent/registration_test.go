package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// TestLabelMonitor asserts that a missing label has the driver registered again after the grace, at most once in each
// pause. An existing label ends that.
func TestLabelMonitor(t *testing.T) {
	start := time.Now()
	var w labelMonitor
	for _, step := range []struct {
		after    time.Duration
		missing  bool
		register bool
		wait     time.Duration
	}{
		{0, false, false, 0},
		{time.Second, true, false, labelGrace},
		{time.Second + labelGrace/3, true, false, labelGrace * 2 / 3},
		{time.Second + labelGrace, true, true, labelPause},
		{2*time.Second + labelGrace, true, false, labelPause - time.Second},
		{time.Second + labelGrace + labelPause, true, true, labelPause},
		{2*time.Second + labelGrace + labelPause, false, false, 0},
		{3*time.Second + labelGrace + labelPause, true, false, labelPause - 2*time.Second},
		{time.Hour, true, true, labelPause},
		{2 * time.Hour, false, false, 0},
		{3 * time.Hour, true, false, labelGrace},
	} {
		register, wait := w.due(step.missing, start.Add(step.after))
		if register != step.register || wait != step.wait {
			t.Errorf("after %v, missing %v: register %v, wait %v; want %v, %v", step.after, step.missing, register, wait, step.register, step.wait)
		}
	}
}

// TestDriverMissing asserts when a CSINode does not have the driver.
func TestDriverMissing(t *testing.T) {
	with := func(drivers ...string) *storagev1.CSINode { return objects.CSINode("n", drivers...) }
	if !driverMissing(nil) || !driverMissing(with("other")) || driverMissing(with("other", diskv1alpha1.DriverName)) {
		t.Error("a CSINode is taken for another")
	}
}

// TestLabelMissing asserts what counts as a missing label.
func TestLabelMissing(t *testing.T) {
	node := func(uid types.UID, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", UID: uid, Labels: labels}}
	}
	for name, test := range map[string]struct {
		node *corev1.Node
		want bool
	}{
		"no Node":         {node("", nil), false},
		"no label":        {node("u", map[string]string{"a": "b"}), true},
		"another's label": {node("u", map[string]string{diskv1alpha1.LabelNode: "node2"}), true},
		"the label":       {node("u", map[string]string{diskv1alpha1.LabelNode: "node1"}), false},
	} {
		if got := labelMissing(test.node); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
