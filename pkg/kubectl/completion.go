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
	return s.complete(cmd, args, typed, func(ctx context.Context, a *api) (names []string, err error) {
		if node, _, slash := strings.Cut(typed, "/"); slash {
			ndc, err := a.capacity(ctx, node)
			if err != nil {
				return nil, err
			}
			for _, d := range ndc.Status.Disks {
				names = append(names, node+"/"+d.Device)
			}
			return names, nil
		}
		nodes, err := a.capacities(ctx)
		for i := range nodes {
			names = append(names, nodes[i].Name)
		}
		return names, err
	})
}

// completeCandidates completes NODE/DEVICE with the devices that wait for approval.
func (s *session) completeCandidates(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return s.complete(cmd, args, typed, func(ctx context.Context, a *api) (names []string, err error) {
		nodes, err := a.capacities(ctx)
		for i := range nodes {
			for _, d := range nodes[i].Status.Devices {
				if d.State == diskv1alpha1.DeviceCandidate {
					names = append(names, nodes[i].Name+"/"+d.Name)
				}
			}
		}
		return names, err
	})
}

// completeOrphans completes the names of the volumes that can be adopted or released.
func (s *session) completeOrphans(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return s.complete(cmd, args, typed, func(ctx context.Context, a *api) (names []string, err error) {
		orphans, err := a.orphans(ctx, "")
		for i := range orphans {
			if isAdoptable(orphans[i].Volume) {
				names = append(names, orphans[i].Name)
			}
		}
		return names, err
	})
}

// completeClasses completes the flag --class.
func (s *session) completeClasses(cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("class", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return s.complete(cmd, nil, typed, func(ctx context.Context, a *api) (names []string, err error) {
			all, err := a.classes(ctx)
			for i := range all {
				names = append(names, all[i].Name)
			}
			return names, err
		})
	})
}

// complete completes the first argument with the names that the API server has.
func (s *session) complete(cmd *cobra.Command, args []string, typed string, names func(context.Context, *api) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	a, err := s.connect()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	all, err := names(ctx, a)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return startingWith(all, typed), cobra.ShellCompDirectiveNoFileComp
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
