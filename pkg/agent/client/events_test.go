package client

import (
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/pkg/manual"
	"github.com/berthdev/berth/test/testenv"
)

// TestEventPointsToManual asserts that the agent's events say where they are explained.
func TestEventPointsToManual(t *testing.T) {
	r := clientWithAnswer(t, http.StatusOK, "text/plain", "").NewRecorder()
	r.OfNode("uid", corev1.EventTypeWarning, "VolumeOrphaned", "volume x has no owner")
	if len(r.events) != 1 {
		t.Fatalf("%d events are queued, want 1", len(r.events))
	}
	if have, want := testenv.Receive(t, "an event", r.events).Message, "volume x has no owner; see "+manual.Troubleshooting+"#volumeorphaned"; have != want {
		t.Errorf("the message is %q, want %q", have, want)
	}
}
