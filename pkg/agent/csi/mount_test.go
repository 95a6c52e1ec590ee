package csi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthdev/berth/pkg/agent/volumes"
	"github.com/berthdev/berth/test/testenv"
)

// mounting mounts a tmpfs, and then says what it is told.
type mounting struct{ answers }

func (m *mounting) Publish(ctx context.Context, _ volumes.PodRef, _ string, mount func(context.Context, string, string) error) error {
	return errors.Join(mount(ctx, "tmpfs", "tmpfs"), m.err)
}

// What was mounted by a call that fails is not left: after some errors the kubelet
// believes that nothing was, and never asks for its end.
func TestFailedPublishLeavesNoMount(t *testing.T) {
	testenv.NeedRoot(t)
	r := valid()
	r.TargetPath = filepath.Join(t.TempDir(), "mount")
	_, err := NewNode("n", &mounting{answers{err: errors.New("not written")}}).NodePublishVolume(t.Context(), r)
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "not written") {
		t.Errorf("publish says %v", err)
	}
	if at, err := mountedAt(r.TargetPath); at != nil || err != nil {
		t.Errorf("%v is left: %v", at, err)
	}
	if _, err := os.Stat(r.TargetPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left: %v", err)
	}
}

func TestTargetPaths(t *testing.T) {
	testenv.NeedRoot(t)
	n := NewNode("n", &mounting{})
	r := valid()
	r.TargetPath = "/var/lib/kubelet/../../../etc"
	if _, err := n.NodePublishVolume(t.Context(), r); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a path with ..: %v", err)
	}
	dir := t.TempDir()
	r.TargetPath = filepath.Join(dir, "mount")
	if err := os.Symlink("/etc", r.TargetPath); err != nil {
		t.Fatal(err)
	}
	if _, err := n.NodePublishVolume(t.Context(), r); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("a link: %v", err)
	}
	if at, err := mountedAt("/etc"); at != nil && at.FSType == "tmpfs" {
		t.Errorf("mounted over /etc: %v", err)
	}
}
