package csi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/pkg/agent/mounts"
)

// holdersTimeout bounds the time to find what uses a mount.
const holdersTimeout = 5 * time.Second

// describeMountUsers returns what keeps a mount from being unmounted: the mounts below it, and the other mount
// namespaces with its device. A pod with mountPropagation Bidirectional makes mounts there that only that pod removes.
func describeMountUsers(ctx context.Context, at mounts.Mount) string {
	var users []string
	table, err := mounts.Read()
	if err != nil {
		return err.Error()
	}
	below := table.Below(at.Mountpoint)
	for _, m := range below {
		users = append(users, fmt.Sprintf("%s (%s of %s) is mounted below it: unmount it, or delete the pod that made it", m.Mountpoint, m.FSType, m.Source))
	}
	ctx, cancel := context.WithTimeout(ctx, holdersTimeout)
	defer cancel()
	seen, err := holders.ReadSystem(ctx)
	if err != nil {
		return strings.Join(append(users, err.Error()), "; ")
	}
	var others []holders.Holder
	for _, m := range append(below, at) {
		for _, h := range seen.Of(m.Device()) {
			if !h.Process.Own && !slices.Contains(others, h) {
				others = append(others, h)
			}
		}
	}
	if len(others) > 0 {
		users = append(users, holders.Describe(others))
	}
	if len(users) == 0 {
		users = []string{"a process has files open on it"}
	}
	return strings.Join(append(users, seen.Unchecked()...), "; ")
}
