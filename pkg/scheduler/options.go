// Package scheduler adds Berth's plugins and controllers to a kube-scheduler. It owns their registration and the start
// of the controllers. It does not own their work, which is in the packages of the plugins, in provisioner and in
// capacity.
//
// A scheduler with a main of its own needs only [Options] (options.go):
//
//	command := app.NewSchedulerCommand(append(scheduler.Options(scheduler.Config{}), app.WithPlugin(…))...)
//
// [NewCommand] (command.go) is Berth's own command: kube-scheduler's with Berth's flags, and with the changes of
// package patch. requirements.go ends it if the API server lacks a resource that the scheduler watches. controllers.go
// starts Berth's controllers. emulation.go sets the version of Kubernetes for --emulated-version.
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

// Config is the configuration of Berth's controllers. The plugins' arguments are in the scheduler's configuration.
type Config struct {
	// PublishStorageCapacity keeps a CSIStorageCapacity for each StorageClass of Berth and each node. Without it, those
	// that were published are deleted.
	PublishStorageCapacity bool
	// StorageCapacityNamespace is the namespace of these objects; kube-system if empty.
	StorageCapacityNamespace string
	// NodeGoneGrace is how long a Node must be gone before its NodeDiskCapacity is removed; capacity.GoneGrace if 0.
	NodeGoneGrace time.Duration
}

// Options registers both plugins and their arguments, and makes Berth's controllers with the first profile that has the
// plugin DiskCapacity. It must be called before the scheduler reads its configuration. The scheduler does not start
// with a profile that has one plugin without the other, or either at some of its points only.
//
// The controllers begin to work when this process schedules its first pod in such a profile. A scheduler on standby
// does nothing.
func Options(c Config) []app.Option {
	namespace := c.StorageCapacityNamespace
	if namespace == "" {
		namespace = "kube-system"
	}
	return optionsWithNamespace(c, func() string { return namespace })
}

// optionsWithNamespace is Options with a namespace that is not known before the configuration is read.
func optionsWithNamespace(c Config, namespace func() string) []app.Option {
	registerArgs()
	return []app.Option{
		app.WithPlugin(diskcapacity.Name, newControllerStarter(c, namespace).newDiskCapacity),
		app.WithPlugin(volumebinding.Name, volumebinding.New),
	}
}

// registerArgs registers the plugins' arguments. The configuration is read with one scheme, and the arguments of
// plugins are converted and defaulted with another.
var registerArgs = sync.OnceFunc(func() {
	for _, s := range []*runtime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		utilruntime.Must(diskcapacity.AddArgsToScheme(s))
		utilruntime.Must(volumebinding.AddArgsToScheme(s))
	}
})
