package scheduler

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"github.com/berthdev/berth/pkg/manual"
	"github.com/berthdev/berth/pkg/scheduler/patch"
)

// explainingRecorder appends to the note of each event where its reason is explained. It cuts notes that are too long.
type explainingRecorder struct{ events.EventRecorder }

func (r explainingRecorder) Eventf(regarding, related runtime.Object, eventType, reason, action, note string, args ...any) {
	pointer := manual.Pointer(reason)
	note = fmt.Sprintf(note, args...)
	// The limit is in bytes, so that the cut may divide a character.
	note = strings.ToValidUTF8(note[:min(len(note), patch.MaxNote-len(pointer))], "")
	r.EventRecorder.Eventf(regarding, related, eventType, reason, action, "%s", note+pointer)
}
