package scheduler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
	"github.com/berthdev/berth/test/schedulers"
)

const configs = "../../config/scheduler"

// TestShippedConfiguration asserts that the profiles of the shipped configuration can be built.
func TestShippedConfiguration(t *testing.T) {
	tests := map[string][]string{
		"kube-scheduler-config.yaml":        {"default-scheduler", "berth"},
		"kube-scheduler-config-beside.yaml": {"berth"},
	}
	for file, profiles := range tests {
		t.Run(file, func(t *testing.T) {
			loaded, err := schedulers.Load(t, filepath.Join(configs, file))
			if err != nil {
				t.Fatal(err)
			}
			if loaded.ClientConnection.QPS < 500 {
				t.Errorf("the client may do %v requests a second, which is what bounds pods a second", loaded.ClientConnection.QPS)
			}
			built, err := build(t, loaded)
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

// build makes the profiles of a scheduler that registers nothing but Options.
func build(t *testing.T, c *config.KubeSchedulerConfiguration) (profile.Map, error) {
	t.Helper()
	s, err := schedulers.New(t, c, Options(Config{})...)
	if err != nil {
		return nil, err
	}
	return s.Profiles, nil
}

const (
	everywhere = "multiPoint: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}], disabled: [{name: VolumeBinding}]}"
	atBind     = ", bind: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}]}"
	postFilter = ", postFilter: {enabled: [{name: DiskCapacity}]}"
	// complete is a profile that lacks nothing.
	complete = everywhere + atBind + postFilter
)

// TestPartlyEnabled asserts that a scheduler does not start with a profile that has the plugin at some points only.
func TestPartlyEnabled(t *testing.T) {
	tests := map[string]struct{ plugins, says string }{
		"as it should be": {complete, ""},
		"alone at bind": {everywhere + ", bind: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}], disabled: [{name: DefaultBinder}]}" +
			postFilter, ""},
		"multiPoint only":          {everywhere, "DefaultBinder comes before DiskCapacity, which then never writes the record: name DiskVolumeBinding and DiskCapacity at bind"},
		"behind preemption":        {everywhere + atBind, "name DiskCapacity at postFilter"},
		"filter only":              {"filter: {enabled: [{name: DiskCapacity}]}", "plugin DiskCapacity is not enabled at preEnqueue, preFilter, preScore, score, reserve, bind, postBind, postFilter"},
		"disabled at reserve":      {everywhere + ", reserve: {disabled: [{name: DiskCapacity}]}", "not enabled at reserve"},
		"claims by the stock":      {"multiPoint: {enabled: [{name: DiskCapacity}]}, bind: {enabled: [{name: DiskCapacity}]}" + postFilter, "VolumeBinding, enabled at preFilter, would bind claims without the space"},
		"claims by both":           {"multiPoint: {enabled: [{name: DiskVolumeBinding}, {name: DiskCapacity}]}" + atBind + postFilter, "VolumeBinding, enabled at preFilter, would bind claims without the space"},
		"claims by none":           {"multiPoint: {enabled: [{name: DiskCapacity}], disabled: [{name: VolumeBinding}]}, bind: {enabled: [{name: DiskCapacity}]}" + postFilter, "DiskVolumeBinding is not enabled at preFilter, filter, reserve, preBind, bind"},
		"claims bound behind pods": {everywhere + ", bind: {enabled: [{name: DiskCapacity}, {name: DiskVolumeBinding}]}" + postFilter, "at bind, DiskVolumeBinding must come before DiskCapacity"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			loaded, err := schedulers.Load(t, profileOf(t, test.plugins, ""))
			if err != nil {
				t.Fatal(err)
			}
			_, err = build(t, loaded)
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
			t.Log(err)
		})
	}
}

// TestPluginAlone asserts that a scheduler that registers one plugin by itself does not start, and what the error says.
func TestPluginAlone(t *testing.T) {
	for name, test := range map[string]struct {
		plugins  string
		register app.Option
	}{
		diskcapacity.Name:                   {"multiPoint: {enabled: [{name: DiskCapacity}]}", app.WithPlugin(diskcapacity.Name, diskcapacity.New)},
		diskcapacity.Name + ", named":       {"multiPoint: {enabled: [{name: DiskCapacity}], disabled: [{name: VolumeBinding}]}, bind: {enabled: [{name: DiskCapacity}]}, postFilter: {enabled: [{name: DiskCapacity}]}", app.WithPlugin(diskcapacity.Name, diskcapacity.New)},
		volumebinding.Name:                  {"multiPoint: {enabled: [{name: DiskVolumeBinding}]}", app.WithPlugin(volumebinding.Name, volumebinding.New)},
		volumebinding.Name + ", at preBind": {"multiPoint: {disabled: [{name: VolumeBinding}]}, preBind: {enabled: [{name: DiskVolumeBinding}]}", app.WithPlugin(volumebinding.Name, volumebinding.New)},
	} {
		t.Run(name, func(t *testing.T) {
			loaded, err := schedulers.Load(t, profileOf(t, test.plugins, ""))
			if err != nil {
				t.Fatal(err)
			}
			_, err = schedulers.New(t, loaded, test.register)
			if err == nil || !strings.Contains(err.Error(), "register both plugins with Options of github.com/berthdev/berth/pkg/scheduler") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

// profileOf writes a configuration with one profile, and returns its path.
func profileOf(t *testing.T, plugins, more string) string {
	t.Helper()
	text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: berth\n" +
		"  plugins: {" + plugins + "}\n" + more
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
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
	ListPlugins() *config.Plugins
}

func pointsOf(framework frameworkOf) map[string]config.PluginSet {
	p := framework.ListPlugins()
	return map[string]config.PluginSet{
		"preEnqueue": p.PreEnqueue, "preFilter": p.PreFilter, "filter": p.Filter, "postFilter": p.PostFilter, "preScore": p.PreScore,
		"score": p.Score, "reserve": p.Reserve, "permit": p.Permit, "preBind": p.PreBind, "bind": p.Bind, "postBind": p.PostBind,
	}
}
