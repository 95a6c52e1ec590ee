package main

import (
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	_ "sigs.k8s.io/scheduler-plugins/apis/config/scheme" // the arguments of Coscheduling
	"sigs.k8s.io/scheduler-plugins/pkg/coscheduling"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

// The configuration is read with one scheme and its plugin arguments are converted and
// defaulted with another; both must know ours, before the configuration is read.
func init() {
	for _, s := range []*runtime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		utilruntime.Must(diskcapacity.AddArgsToScheme(s))
		utilruntime.Must(volumebinding.AddArgsToScheme(s))
	}
}

// plugins are registered beside the stock ones; the configuration enables them.
func plugins() []app.Option {
	return []app.Option{
		app.WithPlugin(diskcapacity.Name, newDiskCapacity),
		app.WithPlugin(volumebinding.Name, volumebinding.New),
		app.WithPlugin(coscheduling.Name, coscheduling.New),
	}
}

func newCommand() *cobra.Command {
	return app.NewSchedulerCommand(plugins()...)
}
