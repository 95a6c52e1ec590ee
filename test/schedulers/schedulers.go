// Package schedulers builds schedulers for tests like the command does. They connect to nothing and do not run.
package schedulers

import (
	"context"
	"errors"
	"testing"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// Load reads a configuration as the scheduler does with --config.
func Load(t testing.TB, path string) (*config.KubeSchedulerConfiguration, error) {
	t.Helper()
	logger, _ := ktesting.NewTestContext(t)
	read, err := options.LoadConfigFromFile(logger, path)
	if err != nil {
		return nil, err
	}
	return read, errors.Join(validation.ValidateKubeSchedulerConfiguration(read))
}

// New makes a scheduler with additional plugins.
func New(t testing.TB, c *config.KubeSchedulerConfiguration, plugins ...app.Option) (*scheduler.Scheduler, error) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	kubeConfig := &rest.Config{Host: "127.0.0.1:1"} // nothing listens there
	client, err := kubernetes.NewForConfig(kubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	registry := runtime.Registry{}
	for _, register := range plugins {
		if err := register(registry); err != nil {
			t.Fatal(err)
		}
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	return scheduler.New(ctx, client, informers.NewSharedInformerFactory(client, 0), nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithProfiles(c.Profiles...), scheduler.WithExtenders(c.Extenders...), scheduler.WithKubeConfig(kubeConfig),
		scheduler.WithFrameworkOutOfTreeRegistry(registry))
}
