package diskcapacity

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
)

// ClaimsName is the name of the plugin that binds claims, in package volumebinding. A profile has both plugins or none.
const ClaimsName = "DiskVolumeBinding"

// The stock plugins that must not replace or precede ours.
const (
	stockVolumeBinding = "VolumeBinding"
	stockBinder        = "DefaultBinder"
	stockPreemption    = "DefaultPreemption"
)

// Register is the part of messages that says what a scheduler's main must do.
const Register = "register both plugins with Options of github.com/berthdev/berth/pkg/scheduler"

// profile is the part of a framework that describes its profile.
type profile interface {
	ListPlugins() *config.Plugins
	ProfileName() string
}

// NewProfileCheck returns a function that returns an error if the profile of the framework is incomplete: then volumes
// would get no record, and their space would be given away. The function can only be called when all plugins of the
// profile exist. They do not yet while one of them is made. NewProfileCheck returns an error if the profile can never
// be read.
func NewProfileCheck(plugin string, handle fwk.Handle) (func() error, error) {
	p, ok := handle.(profile)
	if !ok {
		return nil, fmt.Errorf("plugin %s: a framework of %T does not say which plugins the profile has, so that it cannot be checked: without all of them space is sold without a record", plugin, handle)
	}
	return sync.OnceValue(func() error {
		if err := checkPlugins(p.ListPlugins()); err != nil {
			return fmt.Errorf("profile %s: %w", p.ProfileName(), err)
		}
		return nil
	}), nil
}

// checkPlugins returns what a profile with one of our plugins lacks.
func checkPlugins(p *config.Plugins) error {
	if missing := lacking(Name, point{"preEnqueue", p.PreEnqueue}, point{"preFilter", p.PreFilter}, point{"filter", p.Filter}, point{"preScore", p.PreScore},
		point{"score", p.Score}, point{"reserve", p.Reserve}, point{"bind", p.Bind}, point{"postBind", p.PostBind}, point{"postFilter", p.PostFilter}); missing != "" {
		return fmt.Errorf("plugin %s is not enabled at %s: enable it at multiPoint, and %s", Name, missing, Register)
	}
	for _, at := range []point{{"preFilter", p.PreFilter}, {"filter", p.Filter}, {"reserve", p.Reserve}, {"preBind", p.PreBind}} {
		if indexOf(at.set, stockVolumeBinding) >= 0 {
			return fmt.Errorf("%s, enabled at %s, would bind claims without the space that %s has reserved for them: disable it at multiPoint, and enable %s there; %s", stockVolumeBinding, at.name, Name, ClaimsName, Register)
		}
	}
	if missing := lacking(ClaimsName, point{"preFilter", p.PreFilter}, point{"filter", p.Filter}, point{"reserve", p.Reserve}, point{"preBind", p.PreBind}, point{"bind", p.Bind}); missing != "" {
		return fmt.Errorf("plugin %s is not enabled at %s, so that no claim would be bound: enable it at multiPoint, and %s", ClaimsName, missing, Register)
	}
	if indexOf(p.Bind, ClaimsName) > indexOf(p.Bind, Name) {
		return fmt.Errorf("at bind, %s must come before %s, which binds the pod: name both there, in this order", ClaimsName, Name)
	}
	for _, before := range p.Bind.Enabled[:indexOf(p.Bind, Name)] {
		if before.Name != ClaimsName {
			return fmt.Errorf("%s comes before %s, which then never writes the record: name %s and %s at bind, too, before it", before.Name, Name, ClaimsName, Name)
		}
	}
	if stock := indexOf(p.PostFilter, stockPreemption); stock >= 0 && indexOf(p.PostFilter, Name) > stock {
		return fmt.Errorf("%s comes before %s, and would preempt again while volumes are wiped: name %s at postFilter, too", stockPreemption, Name, Name)
	}
	return nil
}

// point is an extension point, and the plugins that are enabled there.
type point struct {
	name string
	set  config.PluginSet
}

// lacking returns the names of the points that lack the plugin.
func lacking(plugin string, points ...point) string {
	var missing []string
	for _, p := range points {
		if indexOf(p.set, plugin) < 0 {
			missing = append(missing, p.name)
		}
	}
	return strings.Join(missing, ", ")
}

func indexOf(set config.PluginSet, name string) int {
	return slices.IndexFunc(set.Enabled, func(p config.Plugin) bool { return p.Name == name })
}

// bindingExtender returns the extender that would bind the pod instead of the plugins, and so without a record.
func bindingExtender(extenders []fwk.Extender, pod *corev1.Pod) string {
	for _, e := range extenders {
		if e.IsBinder() && e.IsInterested(pod) {
			return e.Name()
		}
	}
	return ""
}
