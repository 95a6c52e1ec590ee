package integration

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	kubescheduler "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"

	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/scheduler"
	"github.com/berthdev/berth/pkg/scheduler/patch"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/faultyproxy"
)

// clientPatience is how long the scheduler waits for an answer, but of watches.
const clientPatience = time.Second

// faultyScheduler is Berth's scheduler in this process, so that its ledger can be read, behind a faulty proxy.
type faultyScheduler struct {
	proxy  *faultyproxy.Proxy
	ledger *ledger.Ledger
	// log is a file.
	log string
	// stop ends both.
	stop func()
}

// startFaultyScheduler returns when the scheduler has read what there is.
func startFaultyScheduler(
	t *testing.T, c *cluster.Cluster, decide func(faultyproxy.Request) faultyproxy.Fault,
) *faultyScheduler {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "scheduler.log"))
	if err != nil {
		t.Fatal(err)
	}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log), textlogger.Verbosity(3)))
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logger))
	proxy, err := faultyproxy.Start(c.RESTConfig(), decide)
	if err != nil {
		t.Fatal(err)
	}
	s := &faultyScheduler{proxy: proxy, log: log.Name()}
	var running sync.WaitGroup
	s.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := errors.Join(proxy.Close(), log.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)

	plugins := runtime.Registry{}
	for _, option := range scheduler.Options(scheduler.Config{NodeGoneGrace: time.Second}) {
		if err := option(plugins); err != nil {
			t.Fatal(err)
		}
	}
	configuration, err := options.LoadConfigFromFile(logger, leaksConfiguration(t))
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: proxy.URL, QPS: 1000, Burst: 2000}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &impatient{next} })
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	factory := kubescheduler.NewInformerFactory(client, 0)
	others := dynamicinformer.NewDynamicSharedInformerFactory(dynamic.NewForConfigOrDie(config), 0)
	broadcaster := events.NewEventBroadcasterAdapterWithContext(ctx, client)
	sched, err := kubescheduler.New(ctx, client, factory, others,
		func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) },
		kubescheduler.WithComponentConfigVersion(configuration.APIVersion), kubescheduler.WithKubeConfig(config),
		kubescheduler.WithProfiles(configuration.Profiles...), kubescheduler.WithFrameworkOutOfTreeRegistry(plugins),
		kubescheduler.WithPodInitialBackoffSeconds(configuration.PodInitialBackoffSeconds),
		kubescheduler.WithPodMaxBackoffSeconds(configuration.PodMaxBackoffSeconds))
	if err != nil {
		t.Fatal(err)
	}
	shared, ok := diskcapacity.SharedLedger(factory)
	if !ok {
		t.Fatal("the scheduler has no ledger")
	}
	s.ledger = shared.Ledger
	if err := patch.Apply(ctx, sched, shared); err != nil {
		t.Fatal(err)
	}
	broadcaster.StartRecordingToSink(ctx.Done())
	running.Go(func() {
		<-ctx.Done()
		broadcaster.Shutdown()
	})
	factory.Start(ctx.Done())
	others.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	others.WaitForCacheSync(ctx.Done())
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		t.Fatal(err)
	}
	running.Go(func() { sched.Run(ctx) })
	if err := cluster.Eventually(ctx, 2*patience, func(context.Context) error {
		if !shared.Synced() {
			return errors.New("the ledger is not loaded")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// leaksConfiguration is the shipped configuration with short pauses, as a file.
func leaksConfiguration(t *testing.T) string {
	t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config-beside.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(shipped)
	for before, after := range map[string]string{
		"leaderElect: true":       "leaderElect: false",
		"bindTimeoutSeconds: 600": "bindTimeoutSeconds: 20",
		"profiles:\n":             "podInitialBackoffSeconds: 1\npodMaxBackoffSeconds: 1\nprofiles:\n",
	} {
		if strings.Count(text, before) != 1 {
			t.Fatalf("the shipped configuration has not one %q", before)
		}
		text = strings.Replace(text, before, after, 1)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// impatient gives up requests without an answer.
type impatient struct{ next http.RoundTripper }

func (i *impatient) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("watch") != "" {
		return i.next.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), clientPatience)
	response, err := i.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	response.Body = &canceling{response.Body, cancel}
	return response, nil
}

// canceling ends the request's context with its body.
type canceling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *canceling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
