package cluster

import (
	"io"
	"strings"
	"testing"
)

// TestMissingPackages: where nothing can be installed, the error names what is
// missing and what has it.
func TestMissingPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := InstallPackages(t.Context(), io.Discard)
	if err == nil {
		t.Fatal("no error on a machine without programs")
	}
	for _, want := range []string{"containerd", "runc", "busybox-static", "xfsprogs", "iproute2", "util-linux"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
}

func TestRefusedOptions(t *testing.T) {
	for _, test := range []struct {
		name string
		o    Options
		want string
	}{
		{"two nodes of a name", Options{Nodes: []NodeOptions{{Name: "a"}, {Name: "a"}}}, "two nodes are called a"},
		{"a default name twice", Options{Nodes: []NodeOptions{{Name: "node2"}, {}}}, "two nodes are called node2"},
		{"too many nodes", Options{Nodes: make([]NodeOptions, maxNodes+1)}, "at most 32"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Start(t.Context(), test.o)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
