package kubectl

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// leastID is how many characters of a disk's ID name it, at least: fewer are a mistake more often than a name.
const leastID = 4

// shownID is how many characters of a disk's ID messages have.
const shownID = 8

// target is a disk that a command is about.
type target struct {
	node string
	// id is never short. device is empty for a disk that only spec names.
	id, device string
}

// path is node/device, or node/ID for a disk that has no device.
func (t *target) path() string {
	if t.device == "" {
		return t.node + "/" + t.id
	}
	return t.node + "/" + t.device
}

func shortID(id string) string { return id[:min(shownID, len(id))] }

// diskArguments reads NODE DISK or NODE/DISK.
func diskArguments(args []string) (node, disk string, err error) {
	node, disk = splitPath(args[0])
	if len(args) == 2 {
		if disk != "" {
			return "", "", fmt.Errorf("%s and %s both name a disk: give NODE DISK or NODE/DISK", args[0], args[1])
		}
		disk = args[1]
	}
	if node == "" || disk == "" {
		return "", "", fmt.Errorf("name the disk as NODE DISK or NODE/DISK; the disks of a node are listed by kubectl berth get disks --node %s", node)
	}
	return node, disk, nil
}

// findDisk finds the disk with that device, ID or beginning of an ID. A name for two disks is refused, and one for
// none.
func findDisk(ndc *diskv1alpha1.NodeDiskCapacity, name string) (*target, error) {
	var all []target
	for i := range ndc.Status.Disks {
		all = append(all, target{ndc.Name, ndc.Status.Disks[i].ID, ndc.Status.Disks[i].Device})
	}
	// A decision may be about a disk that is gone.
	for _, decision := range ndc.Spec.Disks {
		if !slices.ContainsFunc(all, func(t target) bool { return t.id == decision.ID }) {
			all = append(all, target{node: ndc.Name, id: decision.ID})
		}
	}
	device, id := strings.TrimPrefix(name, "/dev/"), strings.ToLower(name)
	found := matching(all, func(t target) bool { return t.device == device || t.id == id })
	if len(found) == 0 && len(id) >= leastID {
		found = matching(all, func(t target) bool { return strings.HasPrefix(t.id, id) })
	}
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		if len(all) == 0 {
			return nil, fmt.Errorf("node %s has no disk %q: it has no disk of Berth; kubectl berth get devices --node %s says why", ndc.Name, name, ndc.Name)
		}
		return nil, fmt.Errorf("node %s has no disk %q: it has %s", ndc.Name, name, listTargets(all))
	}
	return nil, fmt.Errorf("node %s has %d disks that %q can mean: %s; give more of the ID", ndc.Name, len(found), name, listTargets(found))
}

func matching(all []target, is func(target) bool) []target {
	return slices.DeleteFunc(slices.Clone(all), func(t target) bool { return !is(t) })
}

// listTargets names disks. Their IDs are shown as long as they must be to be different.
func listTargets(all []target) string {
	length := shownID
	for i := range all {
		for j := range i {
			for length < len(all[i].id) && strings.HasPrefix(all[j].id, all[i].id[:min(length, len(all[i].id))]) && all[i].id != all[j].id {
				length++
			}
		}
	}
	texts := make([]string, len(all))
	for i, t := range all {
		id := t.id[:min(length, len(t.id))]
		switch t.device {
		case "":
			texts[i] = id + " (gone)"
		default:
			texts[i] = t.device + " (" + id + ")"
		}
	}
	return strings.Join(texts, ", ")
}

// completeDisks completes NODE DISK, and NODE/DISK.
func (s *session) completeDisks(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return s.completeNodes(cmd, args, typed)
	}
	if len(args) > 1 || strings.Contains(args[0], "/") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	prefix := args[0] + "/"
	found, directive := s.completeNodes(cmd, nil, prefix+typed)
	for i := range found {
		found[i] = strings.TrimPrefix(found[i], prefix)
	}
	return found, directive
}
