package scheduler

import (
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/berthdev/berth/pkg/manual"
	"github.com/berthdev/berth/pkg/scheduler/patch"
	"github.com/berthdev/berth/test/testenv"
)

// TestExplainingRecorder asserts that notes end in the address of their reason. They are cut by bytes, as the API
// server counts, and stay valid UTF-8.
func TestExplainingRecorder(t *testing.T) {
	const before, after = "Warning NodeGone ", "; see " + manual.Troubleshooting + "#nodegone"
	for _, note := range []string{"", "100% of n1", strings.Repeat("x", 5000), strings.Repeat("ü", 5000), "x" + strings.Repeat("€", 5000)} {
		fake := events.NewFakeRecorder(1)
		explainingRecorder{fake}.Eventf(&corev1.Node{}, nil, corev1.EventTypeWarning, "NodeGone", "Watching", "%s", note)
		if len(fake.Events) != 1 {
			t.Fatalf("%.20q… has %d events, want 1", note, len(fake.Events))
		}
		have := strings.TrimPrefix(testenv.Receive(t, "an event", fake.Events), before)
		kept, found := strings.CutSuffix(have, after)
		if !found || len(have) > patch.MaxNote || !utf8.ValidString(have) || !strings.HasPrefix(note, kept) || len(kept) < min(len(note), patch.MaxNote-len(after)-2) {
			t.Errorf("%.20q… of %d bytes became %q", note, len(note), have)
		}
	}
}
