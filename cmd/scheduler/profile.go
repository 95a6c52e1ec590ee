package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

// newDiskCapacity makes the plugin such that the scheduler does not start with a profile
// that has only a part of it.
func newDiskCapacity(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	plugin, err := diskcapacity.New(ctx, args, handle)
	if err != nil {
		return nil, err
	}
	profile, ok := handle.(interface {
		ListPlugins() *config.Plugins
		ProfileName() string
	})
	if p, isOurs := plugin.(*diskcapacity.Plugin); ok && isOurs {
		p.RefuseUnless(func() error { return complete(profile.ProfileName(), profile.ListPlugins()) })
	}
	return plugin, nil
}

// complete says what a profile with the plugin DiskCapacity lacks.
func complete(profile string, p *config.Plugins) error {
	const name, claims = diskcapacity.Name, volumebinding.Name
	var missing []string
	for _, point := range []struct {
		name string
		set  config.PluginSet
	}{
		{"preEnqueue", p.PreEnqueue}, {"preFilter", p.PreFilter}, {"filter", p.Filter}, {"preScore", p.PreScore}, {"score", p.Score},
		{"reserve", p.Reserve}, {"bind", p.Bind}, {"postFilter", p.PostFilter},
	} {
		if index(point.set, name) < 0 {
			missing = append(missing, point.name)
		}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("profile %s: plugin %s is not enabled at %s: enable it at multiPoint", profile, name, strings.Join(missing, ", "))
	case index(p.PreBind, names.VolumeBinding) >= 0:
		return fmt.Errorf("profile %s: %s would bind claims without the space that %s has reserved for them: disable it at multiPoint, and enable %s there", profile, names.VolumeBinding, name, claims)
	case index(p.PreFilter, claims) < 0, index(p.Filter, claims) < 0, index(p.Reserve, claims) < 0, index(p.PreBind, claims) < 0:
		return fmt.Errorf("profile %s: plugin %s is not enabled, or not at all its points, so that no claim would be bound: enable it at multiPoint", profile, claims)
	case index(p.Bind, claims) < 0, index(p.Bind, claims) > index(p.Bind, name):
		return fmt.Errorf("profile %s: at bind, %s must come before %s, which binds the pod: name both there, in this order", profile, claims, name)
	case index(p.Bind, name) > index(p.Bind, names.DefaultBinder) && index(p.Bind, names.DefaultBinder) >= 0:
		return fmt.Errorf("profile %s: %s comes before %s, which then never writes the record: name %s at bind, too", profile, names.DefaultBinder, name, name)
	case index(p.PostFilter, name) > index(p.PostFilter, names.DefaultPreemption) && index(p.PostFilter, names.DefaultPreemption) >= 0:
		return fmt.Errorf("profile %s: %s comes before %s, and would preempt again while volumes are wiped: name %s at postFilter, too", profile, names.DefaultPreemption, name, name)
	}
	return nil
}

func index(set config.PluginSet, name string) int {
	return slices.IndexFunc(set.Enabled, func(p config.Plugin) bool { return p.Name == name })
}
