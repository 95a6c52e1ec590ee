package scheduler

import (
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// TestFlags asserts that the command has kube-scheduler's flags and ours.
func TestFlags(t *testing.T) {
	ours, theirs := NewCommand(), app.NewSchedulerCommand()
	if ours.Name() != theirs.Name() {
		t.Errorf("the command is %q, want %q", ours.Name(), theirs.Name())
	}
	more := map[string]bool{"publish-storage-capacity": true, "node-gone-grace": true, "patch-kube-scheduler": true}
	theirs.Flags().VisitAll(func(f *pflag.Flag) {
		if have := ours.Flags().Lookup(f.Name); have == nil || have.DefValue != f.DefValue || have.Value.Type() != f.Value.Type() {
			t.Errorf("flag --%s is missing, or another", f.Name)
		}
	})
	ours.Flags().VisitAll(func(f *pflag.Flag) {
		if theirs.Flags().Lookup(f.Name) == nil && !more[f.Name] {
			t.Errorf("flag --%s is unknown to kube-scheduler", f.Name)
		}
	})
}
