package volumes

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestWhichScheduler asserts that the events about a pod without a record say which scheduler writes one.
func TestWhichScheduler(t *testing.T) {
	full := errors.New("largest free extent is 1Gi")
	for name, test := range map[string]struct {
		scheduler string
		recorded  bool
		says      []string
	}{
		"the stock scheduler": {"default-scheduler", false, []string{"default-scheduler, or nodeName, chose the node", "set schedulerName: berth"}},
		"no scheduler":        {"", false, []string{"default-scheduler, or nodeName, chose the node", "set schedulerName: berth"}},
		"another":             {"volcano", false, []string{"scheduler volcano, or nodeName", "set schedulerName: berth"}},
		"ours, and nodeName":  {"berth", false, []string{"names its node itself"}},
		"ours":                {"berth", true, nil},
		"another, recorded":   {"foreign", true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.PodSpec{SchedulerName: test.scheduler}}
			if test.recorded {
				pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: "{}"}
			}
			noRoom := explainNoRoom(pod, full)
			if !strings.HasPrefix(noRoom, full.Error()) || test.recorded && noRoom != full.Error() {
				t.Errorf("of no room it says %q", noRoom)
			}
			_, err := recordOf(pod)
			for _, text := range test.says {
				if !strings.Contains(noRoom, text) || err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("%q and %v do not say %q", noRoom, err, text)
				}
			}
		})
	}
}
