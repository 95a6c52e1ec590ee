package scheduler

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
	"github.com/berthdev/berth/test/schedulers"
)

// TestArguments asserts the plugins' arguments that the scheduler reads from its configuration, and which of them keep
// it from starting.
func TestArguments(t *testing.T) {
	registerArgs()
	type claims struct {
		seconds  int64
		patience time.Duration
	}
	for name, test := range map[string]struct {
		plugin, args string
		want         any
		err          string
	}{
		"syncTimeout: none":               {diskcapacity.Name, "", time.Second, ""},
		"syncTimeout: set":                {diskcapacity.Name, "{syncTimeout: 300ms}", 300 * time.Millisecond, ""},
		"syncTimeout: misspelled":         {diskcapacity.Name, "{syncTimout: 300ms}", nil, `unknown field "syncTimout"`},
		"syncTimeout: not a duration":     {diskcapacity.Name, "{syncTimeout: soon}", nil, "invalid duration"},
		"syncTimeout: of another kind":    {diskcapacity.Name, "{kind: NodeAffinityArgs}", nil, "DiskCapacityArgs"},
		"syncTimeout: negative":           {diskcapacity.Name, "{syncTimeout: -1s}", nil, "syncTimeout is -1s"},
		"syncTimeout: too long":           {diskcapacity.Name, "{syncTimeout: 1001ms}", nil, "syncTimeout is 1.001s"},
		"claims: endless":                 {volumebinding.Name, "{bindTimeoutSeconds: 9223372037}", nil, "bindTimeoutSeconds is 9223372037"},
		"claims: none":                    {volumebinding.Name, "", claims{600, 250 * time.Millisecond}, ""},
		"claims: set":                     {volumebinding.Name, "{bindTimeoutSeconds: 60, controllerPatience: 10m}", claims{60, 10 * time.Minute}, ""},
		"claims: no patience":             {volumebinding.Name, "{controllerPatience: 0s}", claims{600, 0}, ""},
		"claims: misspelled":              {volumebinding.Name, "{bindTimeout: 60s}", nil, `unknown field "bindTimeout"`},
		"claims: a duration":              {volumebinding.Name, "{bindTimeoutSeconds: 60s}", nil, "bindTimeoutSeconds"},
		"claims: negative timeout":        {volumebinding.Name, "{bindTimeoutSeconds: -1}", nil, "bindTimeoutSeconds is -1"},
		"claims: negative patience":       {volumebinding.Name, "{controllerPatience: -1s}", nil, "controllerPatience is -1s"},
		"claims: the other plugin's kind": {volumebinding.Name, "{kind: DiskCapacityArgs}", nil, "DiskVolumeBindingArgs"},
		"claims: the stock plugin's":      {volumebinding.Name, "{shape: []}", nil, `unknown field "shape"`},
	} {
		t.Run(name, func(t *testing.T) {
			more := ""
			if test.args != "" {
				more = "  pluginConfig: [{name: " + test.plugin + ", args: " + test.args + "}]\n"
			}
			loaded, err := schedulers.Load(t, profileOf(t, complete, more))
			if err == nil {
				_, err = build(t, loaded)
			}
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want an error about %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var args runtime.Object
			for _, p := range loaded.Profiles[0].PluginConfig {
				if p.Name == test.plugin {
					args = p.Args
				}
			}
			switch a := args.(type) {
			case *diskcapacity.DiskCapacityArgs:
				if a.SyncTimeout.Duration != test.want {
					t.Errorf("got %+v, want %v", a, test.want)
				}
			case *volumebinding.DiskVolumeBindingArgs:
				if have := (claims{a.BindTimeoutSeconds, a.ControllerPatience.Duration}); have != test.want {
					t.Errorf("got %+v, want %+v", have, test.want)
				}
			default:
				t.Errorf("the profile has the arguments %T", args)
			}
		})
	}
}

// TestUnregisteredArguments asserts that a plugin does not start with arguments of a type that no scheme knows.
func TestUnregisteredArguments(t *testing.T) {
	for name, build := range map[string]func() error{
		diskcapacity.Name:  func() error { _, err := diskcapacity.New(t.Context(), &runtime.Unknown{}, nil); return err },
		volumebinding.Name: func() error { _, err := volumebinding.New(t.Context(), &runtime.Unknown{}, nil); return err },
	} {
		if err := build(); err == nil || !strings.Contains(err.Error(), "are *runtime.Unknown") || !strings.Contains(err.Error(), "Options") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
