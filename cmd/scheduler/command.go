package main

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/server"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/cli/globalflag"
	"k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/term"
	"k8s.io/component-base/version/verflag"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/framework"
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

// newCommand is kube-scheduler's command with the flags of Berth's controllers. It is put
// together here and not by app.NewSchedulerCommand because that one keeps the scheduler
// to itself, and with it the moment when this process begins to lead. What it does
// otherwise is the same, in the same order.
func newCommand() *cobra.Command {
	o := options.NewOptions()
	var c controllerOptions
	cmd := &cobra.Command{
		Use: "kube-scheduler",
		Long: `kube-scheduler with Berth's plugins: it places pods, their disk volumes and their
claims, and serves the claims that others have placed. Its flags and its
configuration are those of the Kubernetes scheduler, see
https://kubernetes.io/docs/reference/command-line-tools-reference/kube-scheduler/,
and those of Berth.`,
		Args: cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			// Feature gates are set before RunE.
			return o.ComponentGlobalsRegistry.Set()
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd, o, c) },
	}
	c.addFlags(o.Flags.FlagSet("berth"))
	verflag.AddFlags(o.Flags.FlagSet("global"))
	globalflag.AddGlobalFlags(o.Flags.FlagSet("global"), cmd.Name(), logs.SkipLoggingConfigurationFlags())
	for _, set := range o.Flags.FlagSets {
		cmd.Flags().AddFlagSet(set)
	}
	columns, _, _ := term.TerminalSize(cmd.OutOrStdout())
	cliflag.SetUsageAndHelpFunc(cmd, *o.Flags, columns)
	utilruntime.Must(cmd.MarkFlagFilename("config", "yaml", "yml", "json"))
	return cmd
}

func run(cmd *cobra.Command, o *options.Options, c controllerOptions) error {
	verflag.PrintAndExitIfRequested()
	gates := o.ComponentGlobalsRegistry.FeatureGateFor(compatibility.DefaultKubeComponent)
	// Logging first, so that the flags are shown in its final form.
	if err := logsapi.ValidateAndApply(o.Logs, gates); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cliflag.PrintFlags(cmd.Flags())

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-server.SetupSignalHandler()
		cancel()
	}()

	cc, sched, err := app.Setup(ctx, o, plugins()...)
	if err != nil {
		return err
	}
	if err := spareWaiting(ctx, sched); err != nil {
		return err
	}
	if shared, ok := diskcapacity.SharedLedger(cc.InformerFactory); ok {
		tellPlaces(sched.Profiles, shared)
		// Now, before app.Run starts the informers: those that nobody has asked for until then
		// do not run.
		controllers := newControllers(cc, shared, c)
		whenLeading(sched, func() { go controllers.Run(ctx) })
	} else {
		klog.FromContext(ctx).Info("No profile has the plugin DiskCapacity: claims of Berth that others placed are not served, and none grows", "plugin", diskcapacity.Name)
	}
	if mutable, ok := gates.(featuregate.MutableFeatureGate); ok {
		mutable.AddMetrics()
	}
	o.ComponentGlobalsRegistry.AddMetrics()
	return app.Run(ctx, cc, sched)
}

// whenLeading calls start when the scheduler begins to schedule, which it does when it
// has the lease and its informers are synced; at once, if it needs no lease. Until then
// it never asks for a pod, and then it asks even if there is none: so its asking is the
// one sign that holds with and without leader election, and whenever the informers are
// started. The lock of the lease would tell of leading earlier, but needs the other cases
// told apart.
//
// There is no sign of the end. A scheduler that loses its lease exits; it gives up trying
// to renew it (renewDeadline, 10s) early enough to be gone when another may have it
// (leaseDuration, 15s).
func whenLeading(sched *scheduler.Scheduler, start func()) {
	var once sync.Once
	next := sched.NextPod
	sched.NextPod = func(logger klog.Logger) (*framework.QueuedPodInfo, error) {
		once.Do(start)
		return next(logger)
	}
}
