package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

const configs = "../../config/scheduler"

// load reads a configuration as the scheduler does with --config.
func load(t *testing.T, path string) (*schedulerconfig.KubeSchedulerConfiguration, error) {
	t.Helper()
	logger, _ := ktesting.NewTestContext(t)
	config, err := options.LoadConfigFromFile(logger, path)
	if err != nil {
		return nil, err
	}
	return config, validation.ValidateKubeSchedulerConfiguration(config)
}

// TestShippedConfiguration loads what is shipped and builds the profiles from it.
func TestShippedConfiguration(t *testing.T) {
	tests := map[string][]string{
		"kube-scheduler-config.yaml":        {"default-scheduler", "berth"},
		"kube-scheduler-config-beside.yaml": {"berth"},
	}
	for file, profiles := range tests {
		t.Run(file, func(t *testing.T) {
			config, err := load(t, filepath.Join(configs, file))
			if err != nil {
				t.Fatal(err)
			}
			if config.ClientConnection.QPS < 500 {
				t.Errorf("the client may do %v requests a second, which is what bounds pods a second", config.ClientConnection.QPS)
			}
			built, err := build(t, config)
			if err != nil {
				t.Fatal(err)
			}
			if len(built) != len(profiles) {
				t.Errorf("built %d profiles, want %d", len(built), len(profiles))
			}
			for _, name := range profiles {
				if built[name] == nil {
					t.Fatalf("no profile %s", name)
				}
			}
			checkStock(t, built["default-scheduler"])
			checkBerth(t, built["berth"])
		})
	}
}

// build makes the profiles of a scheduler.
func build(t *testing.T, config *schedulerconfig.KubeSchedulerConfiguration) (profile.Map, error) {
	t.Helper()
	s, err := newScheduler(t, config)
	if err != nil {
		return nil, err
	}
	return s.Profiles, nil
}

// newScheduler makes a scheduler with all plugins that we register. No connection is made:
// nothing listens.
func newScheduler(t *testing.T, config *schedulerconfig.KubeSchedulerConfiguration) (*scheduler.Scheduler, error) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	kubeConfig := &rest.Config{Host: "127.0.0.1:1"}
	client := kubernetes.NewForConfigOrDie(kubeConfig)
	factory := informers.NewSharedInformerFactory(client, 0)
	registry := frameworkruntime.Registry{}
	for _, register := range plugins() {
		if err := register(registry); err != nil {
			t.Fatal(err)
		}
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	return scheduler.New(ctx, client, factory, nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithProfiles(config.Profiles...), scheduler.WithKubeConfig(kubeConfig), scheduler.WithFrameworkOutOfTreeRegistry(registry))
}

// TestPartlyEnabled: a profile that has the plugin at some points only is refused when the
// scheduler starts, not found out when space was sold without a record.
func TestPartlyEnabled(t *testing.T) {
	const (
		everywhere = "multiPoint: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}], disabled: [{name: VolumeBinding}]}"
		atBind     = ", bind: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}]}"
		postFilter = ", postFilter: {enabled: [{name: DiskCapacity}]}"
	)
	tests := map[string]struct{ plugins, says string }{
		"as it should be": {everywhere + atBind + postFilter, ""},
		"alone at bind": {everywhere + ", bind: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}], disabled: [{name: DefaultBinder}]}" +
			postFilter, ""},
		"multiPoint only":          {everywhere, "DefaultBinder comes before DiskCapacity, which then never writes the record: name DiskCapacity at bind"},
		"behind preemption":        {everywhere + atBind, "name DiskCapacity at postFilter"},
		"filter only":              {"filter: {enabled: [{name: DiskCapacity}]}", "plugin DiskCapacity is not enabled at preEnqueue, preFilter, preScore, score, reserve, bind, postFilter"},
		"disabled at reserve":      {everywhere + ", reserve: {disabled: [{name: DiskCapacity}]}", "not enabled at reserve"},
		"claims by the stock":      {"multiPoint: {enabled: [{name: DiskCapacity}]}, bind: {enabled: [{name: DiskCapacity}]}" + postFilter, "VolumeBinding would bind claims without the space"},
		"claims by both":           {"multiPoint: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}]}" + atBind + postFilter, "VolumeBinding would bind claims without the space"},
		"claims by nobody":         {"multiPoint: {enabled: [{name: DiskCapacity}], disabled: [{name: VolumeBinding}]}, bind: {enabled: [{name: DiskCapacity}]}" + postFilter, "DiskVolumeBinding is not enabled, or not at all its points"},
		"claims bound behind pods": {everywhere + ", bind: {enabled: [{name: DiskCapacity}, {name: DiskVolumeBinding}]}" + postFilter, "at bind, DiskVolumeBinding must come before DiskCapacity"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: berth\n" +
				"  plugins: {" + test.plugins + "}\n"
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			config, err := load(t, path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = build(t, config)
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
			t.Log(err)
		})
	}
}

func checkStock(t *testing.T, framework frameworkOf) {
	t.Helper()
	if framework == nil {
		return
	}
	for _, set := range pointsOf(framework) {
		for _, p := range set.Enabled {
			if p.Name == diskcapacity.Name || p.Name == volumebinding.Name || p.Name == "Coscheduling" {
				t.Errorf("the profile default-scheduler has %s", p.Name)
			}
		}
	}
}

func checkBerth(t *testing.T, framework frameworkOf) {
	t.Helper()
	points := pointsOf(framework)
	for _, point := range []string{"preEnqueue", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "bind"} {
		found := false
		for _, p := range points[point].Enabled {
			found = found || p.Name == diskcapacity.Name
		}
		if !found {
			t.Errorf("the profile berth lacks %s at %s", diskcapacity.Name, point)
		}
	}
	if bind := points["bind"].Enabled; len(bind) != 3 || bind[0].Name != volumebinding.Name || bind[1].Name != diskcapacity.Name || bind[2].Name != "DefaultBinder" {
		t.Errorf("binders are %v, want %s, %s, DefaultBinder", bind, volumebinding.Name, diskcapacity.Name)
	}
	for point, set := range points {
		for _, p := range set.Enabled {
			if p.Name == "VolumeBinding" {
				t.Errorf("the profile berth has the stock VolumeBinding at %s", point)
			}
		}
	}
	for _, p := range points["score"].Enabled {
		if p.Name == diskcapacity.Name && p.Weight != 10 {
			t.Errorf("weight is %d, want 10", p.Weight)
		}
	}
	if len(points["permit"].Enabled) != 0 {
		t.Errorf("permit plugins %v, want none", points["permit"].Enabled)
	}
}

type frameworkOf interface {
	ListPlugins() *schedulerconfig.Plugins
}

func pointsOf(framework frameworkOf) map[string]schedulerconfig.PluginSet {
	p := framework.ListPlugins()
	return map[string]schedulerconfig.PluginSet{
		"preEnqueue": p.PreEnqueue, "preFilter": p.PreFilter, "filter": p.Filter, "postFilter": p.PostFilter, "preScore": p.PreScore,
		"score": p.Score, "reserve": p.Reserve, "permit": p.Permit, "preBind": p.PreBind, "bind": p.Bind, "postBind": p.PostBind,
	}
}

func TestArguments(t *testing.T) {
	tests := map[string]struct {
		args string
		want time.Duration
		err  string
	}{
		"none":            {"", 10 * time.Second, ""},
		"set":             {"{syncTimeout: 3s}", 3 * time.Second, ""},
		"misspelt":        {"{syncTimout: 3s}", 0, `unknown field "syncTimout"`},
		"not a duration":  {"{syncTimeout: soon}", 0, "invalid duration"},
		"of another kind": {"{kind: NodeAffinityArgs}", 0, "DiskCapacityArgs"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: berth\n" +
				"  plugins: {multiPoint: {enabled: [{name: DiskCapacity}]}}\n"
			if test.args != "" {
				text += "  pluginConfig: [{name: DiskCapacity, args: " + test.args + "}]\n"
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			config, err := load(t, path)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want an error about %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range config.Profiles[0].PluginConfig {
				if p.Name == diskcapacity.Name {
					if have := p.Args.(*diskcapacity.DiskCapacityArgs).SyncTimeout.Duration; have != test.want {
						t.Errorf("syncTimeout is %v, want %v", have, test.want)
					}
					return
				}
			}
			t.Error("the profile has no arguments of the plugin")
		})
	}
}

func TestNegativeTimeoutIsRefused(t *testing.T) {
	args := &diskcapacity.DiskCapacityArgs{}
	args.SyncTimeout.Duration = -time.Second
	if err := args.Validate(); err == nil || !strings.Contains(err.Error(), "syncTimeout") {
		t.Errorf("got %v", err)
	}
	if err := (&volumebinding.DiskVolumeBindingArgs{BindTimeoutSeconds: -1}).Validate(); err == nil || !strings.Contains(err.Error(), "bindTimeoutSeconds") {
		t.Errorf("got %v", err)
	}
}

func TestCommandKnowsItsPlugins(t *testing.T) {
	if name := newCommand().Name(); name != "kube-scheduler" {
		t.Errorf("the command is %q", name)
	}
}
