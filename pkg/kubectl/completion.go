package kubectl

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// completionPatience is how long a shell waits for names.
const completionPatience = 3 * time.Second

// completeNodes completes the names of nodes with a NodeDiskCapacity, and behind a slash those of their disks.
func (s *session) completeNodes(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	a, err := s.connect()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	var names []string
	if node, _, slash := strings.Cut(typed, "/"); slash {
		ndc, err := a.capacity(ctx, node)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, d := range ndc.Status.Disks {
			names = append(names, node+"/"+d.Device)
		}
	} else {
		nodes, err := a.capacities(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for i := range nodes {
			names = append(names, nodes[i].Name)
		}
	}
	return startingWith(names, typed), cobra.ShellCompDirectiveNoFileComp
}

// completeCandidates completes NODE/DEVICE with the devices that wait for approval.
func (s *session) completeCandidates(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	a, err := s.connect()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	nodes, err := a.capacities(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range nodes {
		for _, d := range nodes[i].Status.Devices {
			if d.State == diskv1alpha1.DeviceCandidate {
				names = append(names, nodes[i].Name+"/"+d.Name)
			}
		}
	}
	return startingWith(names, typed), cobra.ShellCompDirectiveNoFileComp
}

// completeOrphans completes the names of the volumes that can be adopted or released.
func (s *session) completeOrphans(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	a, err := s.connect()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	orphans, err := a.orphans(ctx, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range orphans {
		if isAdoptable(orphans[i].Volume) {
			names = append(names, orphans[i].Name)
		}
	}
	return startingWith(names, typed), cobra.ShellCompDirectiveNoFileComp
}

// completeClasses completes the flag --class.
func (s *session) completeClasses(cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("class", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		a, err := s.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		all, err := a.classes(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for i := range all {
			names = append(names, all[i].Name)
		}
		return startingWith(names, typed), cobra.ShellCompDirectiveNoFileComp
	})
}

func startingWith(names []string, prefix string) []string {
	var found []string
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			found = append(found, name)
		}
	}
	return found
}
