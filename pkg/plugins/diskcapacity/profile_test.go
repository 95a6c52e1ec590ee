package diskcapacity

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

func enabled(names ...string) (set config.PluginSet) {
	for _, name := range names {
		set.Enabled = append(set.Enabled, config.Plugin{Name: name})
	}
	return set
}

// completeProfile has what a profile needs, and plugins that do not matter.
func completeProfile() *config.Plugins {
	return &config.Plugins{
		PreEnqueue: enabled("SchedulingGates", Name), PreFilter: enabled(Name, "NodeAffinity", ClaimsName), Filter: enabled("NodeName", ClaimsName, Name),
		PostFilter: enabled(Name, stockPreemption), PreScore: enabled(Name), Score: enabled(Name), Reserve: enabled(ClaimsName, Name),
		PreBind: enabled(ClaimsName), Bind: enabled(ClaimsName, Name, stockBinder), PostBind: enabled(Name),
	}
}

// TestCompleteProfile asserts that a profile in which volumes would get no record is refused, and that the message says
// what to change.
func TestCompleteProfile(t *testing.T) {
	without := func(set *config.PluginSet, name string) {
		if i := indexOf(*set, name); i >= 0 {
			set.Enabled = append(set.Enabled[:i:i], set.Enabled[i+1:]...)
		}
	}
	for name, test := range map[string]struct {
		change func(p *config.Plugins)
		says   string // nothing if all is well
	}{
		"whole":                   {func(*config.Plugins) {}, ""},
		"no stock binder":         {func(p *config.Plugins) { without(&p.Bind, stockBinder) }, ""},
		"no preemption":           {func(p *config.Plugins) { without(&p.PostFilter, stockPreemption) }, ""},
		"not at preEnqueue":       {func(p *config.Plugins) { without(&p.PreEnqueue, Name) }, "DiskCapacity is not enabled at preEnqueue: enable it at multiPoint"},
		"not at preFilter":        {func(p *config.Plugins) { without(&p.PreFilter, Name) }, "at preFilter"},
		"not at filter":           {func(p *config.Plugins) { without(&p.Filter, Name) }, "at filter"},
		"not at postFilter":       {func(p *config.Plugins) { without(&p.PostFilter, Name) }, "at postFilter"},
		"not at score":            {func(p *config.Plugins) { without(&p.PreScore, Name); without(&p.Score, Name) }, "at preScore, score"},
		"not at reserve":          {func(p *config.Plugins) { without(&p.Reserve, Name) }, "at reserve"},
		"not at bind":             {func(p *config.Plugins) { without(&p.Bind, Name) }, "at bind"},
		"not at postBind":         {func(p *config.Plugins) { without(&p.PostBind, Name) }, "at postBind"},
		"no claims at all":        {func(p *config.Plugins) { *p = *withoutClaimsPlugin(p, without) }, "DiskVolumeBinding is not enabled at preFilter, filter, reserve, preBind, bind"},
		"no claims at preFilter":  {func(p *config.Plugins) { without(&p.PreFilter, ClaimsName) }, "DiskVolumeBinding is not enabled at preFilter"},
		"no claims at filter":     {func(p *config.Plugins) { without(&p.Filter, ClaimsName) }, "at filter"},
		"no claims at reserve":    {func(p *config.Plugins) { without(&p.Reserve, ClaimsName) }, "at reserve"},
		"no claims at preBind":    {func(p *config.Plugins) { without(&p.PreBind, ClaimsName) }, "at preBind"},
		"no claims at bind":       {func(p *config.Plugins) { without(&p.Bind, ClaimsName) }, "at bind"},
		"stock claims":            {func(p *config.Plugins) { p.PreBind = enabled("VolumeBinding", ClaimsName) }, "VolumeBinding, enabled at preBind, would bind claims"},
		"stock claims at reserve": {func(p *config.Plugins) { p.Reserve = enabled("VolumeBinding", ClaimsName, Name) }, "VolumeBinding, enabled at reserve"},
		"stock claims at filter":  {func(p *config.Plugins) { p.Filter = enabled("VolumeBinding", ClaimsName, Name) }, "VolumeBinding, enabled at filter"},
		"claims after the pod":    {func(p *config.Plugins) { p.Bind = enabled(Name, ClaimsName) }, "DiskVolumeBinding must come before DiskCapacity"},
		"stock binder first":      {func(p *config.Plugins) { p.Bind = enabled(ClaimsName, stockBinder, Name) }, "DefaultBinder comes before DiskCapacity, which then never writes the record"},
		"any binder first":        {func(p *config.Plugins) { p.Bind = enabled("Foreign", ClaimsName, Name) }, "Foreign comes before DiskCapacity"},
		"preemption first":        {func(p *config.Plugins) { p.PostFilter = enabled(stockPreemption, Name) }, "name DiskCapacity at postFilter, too"},
	} {
		t.Run(name, func(t *testing.T) {
			p := completeProfile()
			test.change(p)
			err := checkPlugins(p)
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
		})
	}
}

func withoutClaimsPlugin(p *config.Plugins, without func(*config.PluginSet, string)) *config.Plugins {
	for _, set := range []*config.PluginSet{&p.PreFilter, &p.Filter, &p.Reserve, &p.PreBind, &p.Bind} {
		without(set, ClaimsName)
	}
	return p
}

// TestUnknownProfile asserts that the plugin does not start in a framework that does not list the profile's plugins.
func TestUnknownProfile(t *testing.T) {
	if _, err := New(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "cannot be checked") {
		t.Errorf("got %v", err)
	}
}

// TestIncompletePlacesNothing asserts that an incomplete profile places no pod in a framework that never calls
// EventsToRegister, as the scheduler does before it starts.
func TestIncompletePlacesNothing(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.publish(t, "n1", 10)
	b.plugin.checkProfile = func() error { return checkPlugins(&config.Plugins{}) }
	if _, err := b.plugin.EventsToRegister(b.ctx); err == nil {
		t.Error("the scheduler would start")
	}
	_, status := b.plugin.PreFilter(b.ctx, framework.NewCycleState(), podOf("a", 1), b.nodes)
	if status.Code() != fwk.Error {
		t.Errorf("got %v, want an error", status)
	}
}

// binderExtender is an extender that binds the pods of one name.
type binderExtender struct {
	fwk.Extender
	binds bool
	pods  string
}

func (e binderExtender) Name() string                      { return "http://extender" }
func (e binderExtender) IsBinder() bool                    { return e.binds }
func (e binderExtender) IsInterested(pod *corev1.Pod) bool { return pod.Name == e.pods }

// TestExtenderThatBinds asserts that a pod that an extender would bind, without its record, is not placed.
func TestExtenderThatBinds(t *testing.T) {
	pod := podOf("a", 1)
	for name, test := range map[string]struct {
		extender binderExtender
		want     string
	}{
		"it binds the pod":  {binderExtender{binds: true, pods: "a"}, "http://extender"},
		"it binds others":   {binderExtender{binds: true, pods: "b"}, ""},
		"it does not bind":  {binderExtender{binds: false, pods: "a"}, ""},
		"it is not for any": {binderExtender{}, ""},
	} {
		if have := bindingExtender([]fwk.Extender{test.extender}, pod); have != test.want {
			t.Errorf("%s: got %q", name, have)
		}
	}
	b := newBenchExtended(t, []fwk.Extender{binderExtender{binds: true, pods: "a"}}, "n1")
	b.publish(t, "n1", 10)
	cycle := framework.NewCycleState()
	if _, status := b.plugin.PreFilter(b.ctx, cycle, pod, b.nodes); status.Code() != fwk.UnschedulableAndUnresolvable || !strings.Contains(status.Message(), "bindVerb") {
		t.Errorf("got %v", status)
	}
	if _, status := b.plugin.PostFilter(b.ctx, cycle, pod, nil); status.Code() != fwk.UnschedulableAndUnresolvable {
		t.Errorf("others would be preempted for it: %v", status)
	}
}
