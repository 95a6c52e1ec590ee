package patch

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/test/testenv"
)

// TestPlacesInEvent asserts that the places of a bound pod are appended to the event Scheduled, if it has any. No other
// event is changed. TestSchedulerExplains in test/integration asserts that kube-scheduler sends that event.
func TestPlacesInEvent(t *testing.T) {
	disk := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "disk"}}
	plain := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "plain"}}
	fake := events.NewFakeRecorder(1)
	asked := 0
	r := placesRecorder{fake, func(pod *corev1.Pod, most int) string {
		asked = most
		if pod == disk {
			return "100% of it"
		}
		return ""
	}}.WithLogger(klog.Background())
	for _, test := range []struct {
		pod                *corev1.Pod
		reason, note, want string
	}{
		{disk, "Scheduled", "Successfully assigned %v to %v", "Normal Scheduled Successfully assigned x to y; 100% of it"},
		{plain, "Scheduled", "Successfully assigned %v to %v", "Normal Scheduled Successfully assigned x to y"},
		{disk, "FailedScheduling", "%v%v", "Normal FailedScheduling xy"},
	} {
		r.Eventf(test.pod, nil, corev1.EventTypeNormal, test.reason, "Binding", test.note, "x", "y")
		if have := testenv.Receive(t, "an event", fake.Events); have != test.want {
			t.Errorf("got %q, want %q", have, test.want)
		}
	}
	if have := asked + len("Successfully assigned x to y; "); have != 1024 {
		t.Errorf("an event could have %d bytes, not 1024", have)
	}
	long := strings.Repeat("n", 2000)
	r.Eventf(disk, nil, corev1.EventTypeNormal, "Scheduled", "Binding", "%s", long)
	if testenv.Receive(t, "an event", fake.Events); asked > 0 {
		t.Errorf("%d bytes are left behind a note of 2000", asked)
	}
}
