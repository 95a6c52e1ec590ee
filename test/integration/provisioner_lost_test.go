package integration

import (
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
	"github.com/berthdev/berth/pkg/provisioner"
	"github.com/berthdev/berth/test/cluster"
)

// losing is a connection that loses, of each kind of write, the first answer, when the API
// server has done what was asked, and the second request.
type losing struct {
	http.RoundTripper
	mu   sync.Mutex
	lost map[string]int
}

func (l *losing) RoundTrip(request *http.Request) (*http.Response, error) {
	kind := ""
	switch {
	case request.Method == http.MethodPost && strings.HasSuffix(request.URL.Path, "/persistentvolumes"):
		kind = "create volume"
	case request.Method == http.MethodPatch && strings.Contains(request.URL.Path, "/persistentvolumes/"):
		kind = "grow volume"
	case request.Method == http.MethodPatch && strings.Contains(request.URL.Path, "/persistentvolumeclaims/"):
		kind = "patch claim"
	}
	if kind == "" {
		return l.RoundTripper.RoundTrip(request)
	}
	l.mu.Lock()
	l.lost[kind]++
	try := l.lost[kind]
	l.mu.Unlock()
	if try == 2 {
		return nil, errors.New("the request was lost")
	}
	response, err := l.RoundTripper.RoundTrip(request)
	if err == nil && try == 1 {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return nil, errors.New("the answer was lost")
	}
	return response, err
}

// controllers runs the controllers alone, in this process, with a connection of their own.
func (p *provisioning) controllers(t *testing.T, connection func(http.RoundTripper) http.RoundTripper) {
	t.Helper()
	for _, s := range []*runtime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		if err := errors.Join(diskcapacity.AddArgsToScheme(s), volumebinding.AddArgsToScheme(s)); err != nil {
			t.Fatal(err)
		}
	}
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	config, err := options.LoadConfigFromFile(klog.Background(), filepath.Join(repository, "config/scheduler/kube-scheduler-config-beside.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	registry := frameworkruntime.Registry{diskcapacity.Name: diskcapacity.New, volumebinding.Name: volumebinding.New}
	factory := scheduler.NewInformerFactory(p.set, 0)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: p.set.EventsV1()})
	if _, err := scheduler.New(ctx, p.set, factory, nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithProfiles(config.Profiles...), scheduler.WithKubeConfig(p.cluster.RESTConfig()), scheduler.WithFrameworkOutOfTreeRegistry(registry)); err != nil {
		t.Fatal(err)
	}
	shared, ok := diskcapacity.SharedLedger(factory)
	if !ok {
		t.Fatal("the profiles share nothing")
	}
	own := rest.CopyConfig(p.cluster.RESTConfig())
	own.Wrap(connection)
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		t.Fatal(err)
	}
	c := provisioner.New(provisioner.Options{
		Client: client, Factory: factory, Shared: shared,
		Recorder: profile.NewRecorderFactory(broadcaster)("berth-provisioner"),
	})
	factory.Start(ctx.Done())
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		factory.Shutdown()
		broadcaster.Shutdown()
	})
}

// lostAnswers: nothing is made twice, or left half done, when the API server's answers are
// lost.
func lostAnswers(t *testing.T, p *provisioning) {
	n := p.node(t, "prov-a", 10)
	connection := &losing{lost: map[string]int{}}
	p.controllers(t, func(next http.RoundTripper) http.RoundTripper {
		connection.RoundTripper = next
		return connection
	})
	for _, name := range []string{"one", "two", "three"} {
		p.pvc(t, name, "ssd", "1Gi", "prov-a", nil)
	}
	var volumes []string
	for _, name := range []string{"one", "two", "three"} {
		_, pv := p.bound(t, name)
		volumes = append(volumes, pv.Name)
	}
	p.realize(t, n, volumes...)
	// The last one on the disk has room to grow.
	last := ""
	var end int64
	for _, name := range []string{"one", "two", "three"} {
		_, pv := p.bound(t, name)
		v, err := claim.ReadVolume(pv)
		if err != nil {
			t.Fatal(err)
		}
		if v.Place.Start >= end {
			last, end = name, v.Place.Start+v.Size
		}
	}
	for i, size := range []string{"2Gi", "3Gi", "4Gi"} {
		p.resize(t, last, size)
		pvc := p.until(t, last, func(pvc *corev1.PersistentVolumeClaim) bool {
			return pvc.Status.AllocatedResources.Storage().Cmp(resource.MustParse(size)) == 0 &&
				pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage] == corev1.PersistentVolumeClaimNodeResizePending
		})
		p.realize(t, n, volumes...)
		p.kubeletExpands(t, last)
		if hasCondition(pvc, corev1.PersistentVolumeClaimControllerResizeError) {
			t.Errorf("step %d: %+v", i, pvc.Status)
		}
	}
	// What is free is what there is: nothing was reserved for another claim.
	p.pvc(t, "rest", "ssd", "4Gi", "prov-a", nil)
	p.bound(t, "rest")
	connection.mu.Lock()
	defer connection.mu.Unlock()
	for _, kind := range []string{"create volume", "grow volume", "patch claim"} {
		if connection.lost[kind] < 2 {
			t.Errorf("%s was lost %d times", kind, connection.lost[kind])
		}
	}
}
