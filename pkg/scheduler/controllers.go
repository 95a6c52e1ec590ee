package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/berthdev/berth/pkg/capacity"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/provisioner"
)

// controllerStarter starts the controllers of each scheduler that has the plugin DiskCapacity, once.
type controllerStarter struct {
	config    Config
	namespace func() string

	mu sync.Mutex
	// started are the schedulers whose controllers were started, by the informer factory that their profiles share.
	started map[informers.SharedInformerFactory]struct{}
}

func newControllerStarter(c Config, namespace func() string) *controllerStarter {
	if c.NodeGoneGrace == 0 {
		c.NodeGoneGrace = capacity.GoneGrace
	}
	return &controllerStarter{config: c, namespace: namespace, started: map[informers.SharedInformerFactory]struct{}{}}
}

// newDiskCapacity is the plugin's factory. It also makes the controllers, because they need informers, which the
// scheduler starts when its profiles have been made.
func (s *controllerStarter) newDiskCapacity(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	plugin, err := diskcapacity.New(ctx, args, handle)
	if err != nil {
		return nil, err
	}
	return plugin, s.start(ctx, handle)
}

// start makes the controllers, unless the scheduler has them. They run from when this process schedules.
func (s *controllerStarter) start(ctx context.Context, handle fwk.Handle) error {
	factory := handle.SharedInformerFactory()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, done := s.started[factory]; done {
		return nil
	}
	shared, ok := diskcapacity.SharedLedger(factory)
	if !ok {
		return errors.New("starting Berth's controllers: the scheduler ends already")
	}
	disks, err := diskcapacity.Client(handle.KubeConfig())
	if err != nil {
		return fmt.Errorf("making a client for Berth's objects: %w", err)
	}
	// The events get a client of their own, so that they do not wait behind bindings.
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(handle.KubeConfig()), "berth-controllers"))
	if err != nil {
		return fmt.Errorf("making a client for the events of Berth's controllers: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	claims := provisioner.New(provisioner.Options{
		Client: handle.ClientSet(), Factory: factory, Shared: shared,
		Recorder:        explainingRecorder{broadcaster.NewRecorder(scheme.Scheme, "berth-provisioner")},
		PublishCapacity: s.config.PublishStorageCapacity, Namespace: s.namespace(),
	})
	capacities := capacity.New(capacity.Options{
		Client: handle.ClientSet(), Disks: disks, Factory: factory, Shared: shared,
		Recorder: explainingRecorder{broadcaster.NewRecorder(scheme.Scheme, "berth-capacity")}, GoneGrace: s.config.NodeGoneGrace,
	})
	s.started[factory] = struct{}{}
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.started, factory)
	})
	go func() {
		select {
		case <-shared.Scheduling():
		case <-ctx.Done():
			return
		}
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "Berth's controllers work without events")
		}
		defer broadcaster.Shutdown()
		var running sync.WaitGroup
		running.Go(func() { claims.Run(ctx) })
		running.Go(func() { capacities.Run(ctx) })
		running.Wait()
	}()
	return nil
}
