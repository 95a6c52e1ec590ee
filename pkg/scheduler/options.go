// Package scheduler puts Berth's plugins into a kube-scheduler. A scheduler of its own main needs nothing but Options:
//
//	command := app.NewSchedulerCommand(append(scheduler.Options(scheduler.Config{}), app.WithPlugin(…))...)
//
// NewCommand is Berth's own command: kube-scheduler's with Berth's flags, and with the patches of package patch.
package scheduler

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

// Config is for Berth's controllers. Arguments of the plugins stand in the scheduler's configuration.
type Config struct {
	// PublishStorageCapacity keeps a CSIStorageCapacity for each StorageClass of Berth and each node. Without it, those
	// that were published are deleted.
	PublishStorageCapacity bool
	// StorageCapacityNamespace is where they are; kube-system if empty.
	StorageCapacityNamespace string
	// NodeGoneGrace is how long a Node must be gone before its NodeDiskCapacity is removed; capacity.GoneGrace if 0.
	NodeGoneGrace time.Duration
}

// Options register both plugins and their arguments, and make Berth's controllers with the first profile that has the
// plugin DiskCapacity. They must be made before the scheduler reads its configuration. A profile that does not have
// both plugins as they need to be keeps the scheduler from starting.
//
// The controllers work from the moment when this process schedules its first pod in such a profile, so that a scheduler
// that stands by does nothing.
func Options(c Config) []app.Option {
	namespace := c.StorageCapacityNamespace
	if namespace == "" {
		namespace = "kube-system"
	}
	return optionsIn(c, func() string { return namespace })
}

// optionsIn are Options with a namespace that is not known before the configuration is read.
func optionsIn(c Config, namespace func() string) []app.Option {
	registerArgs()
	return []app.Option{
		app.WithPlugin(diskcapacity.Name, newStarter(c, namespace).newDiskCapacity),
		app.WithPlugin(volumebinding.Name, volumebinding.New),
	}
}

// registerArgs makes the plugins' arguments known. The configuration is read with one scheme, and the arguments of
// plugins are converted and defaulted with another.
var registerArgs = sync.OnceFunc(func() {
	for _, s := range []*runtime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		utilruntime.Must(diskcapacity.AddArgsToScheme(s))
		utilruntime.Must(volumebinding.AddArgsToScheme(s))
	}
})
