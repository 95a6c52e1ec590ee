package scheduler

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/discovery"
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

	"github.com/berthdev/berth/pkg/buildinfo"
	"github.com/berthdev/berth/pkg/capacity"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/scheduler/patch"
)

// NewCommand returns kube-scheduler's command with Berth's plugins and flags, and with the plugins in more. It does not
// use app.NewSchedulerCommand, because that keeps the scheduler to itself, which package patch changes. Otherwise it
// does the same in the same order.
func NewCommand(more ...app.Option) *cobra.Command {
	o := options.NewOptionsWithComponentGlobalsRegistry(newComponents())
	var f flags
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
		RunE: func(cmd *cobra.Command, _ []string) error { return runScheduler(cmd, o, f, more) },
	}
	f.add(o.Flags.FlagSet("berth"))
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

// flags are Berth's own flags.
type flags struct {
	Config
	patch bool
}

// add adds the flags to a set.
func (f *flags) add(set *pflag.FlagSet) {
	set.BoolVar(&f.PublishStorageCapacity, "publish-storage-capacity", false,
		"Publish a CSIStorageCapacity for every StorageClass of Berth and every node, for the cluster autoscaler and other schedulers. Berth's own scheduler does not need them. Without it, those that were published are deleted.")
	set.DurationVar(&f.NodeGoneGrace, "node-gone-grace", capacity.GoneGrace,
		"How long a Node must be gone before its NodeDiskCapacity is removed, if no PersistentVolume and no pod is on it.")
	set.BoolVar(&f.patch, "patch-kube-scheduler", true,
		"Change kube-scheduler where its plugins cannot. Waiting pods are asked about fewer events. The event Scheduled names the places of volumes. Berth's controllers start with the lease instead of the first pod.")
}

// runScheduler does what kube-scheduler's own command does, with Berth's plugins, patches and controllers.
func runScheduler(cmd *cobra.Command, o *options.Options, f flags, more []app.Option) error {
	verflag.PrintAndExitIfRequested()
	gates := o.ComponentGlobalsRegistry.FeatureGateFor(compatibility.DefaultKubeComponent)
	// Logging is set up first, so that the flags are logged in the configured format.
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

	// The configuration is read before the plugins are made.
	plugins := optionsWithNamespace(f.Config, func() string { return o.ComponentConfig.LeaderElection.ResourceNamespace })
	cc, sched, err := app.Setup(ctx, o, append(plugins, more...)...)
	if err != nil {
		return err
	}
	go exitIfMissing(ctx, cc.Client.Discovery(), gates.Enabled)
	shared, ok := diskcapacity.SharedLedger(cc.InformerFactory)
	if !ok {
		klog.FromContext(ctx).Info("No profile has the plugin DiskCapacity: claims of Berth that others placed are not served, and none grows", "plugin", diskcapacity.Name)
	}
	if f.patch {
		if err := patch.Apply(ctx, sched, shared); err != nil {
			return fmt.Errorf("changing kube-scheduler, which --patch-kube-scheduler=false leaves as it is: %w", err)
		}
	}
	buildinfo.Register("scheduler")
	if mutable, ok := gates.(featuregate.MutableFeatureGate); ok {
		mutable.AddMetrics()
	}
	o.ComponentGlobalsRegistry.AddMetrics()
	return app.Run(ctx, cc, sched)
}

// exitIfMissing ends the process if the API server lacks what the scheduler watches. Its informers would wait for ever,
// while the health endpoints already respond. So the log has the reason, and a rollout stops.
func exitIfMissing(ctx context.Context, served discovery.ServerResourcesInterface, enabled func(featuregate.Feature) bool) {
	pauses := time.NewTicker(retryPause)
	defer pauses.Stop()
	if err := checkServer(ctx, served, requirements(enabled), pauses.C); err != nil {
		klog.FromContext(ctx).Error(err, "The scheduler ends")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
	}
}

// retryPause is the pause between requests to an API server that does not answer.
const retryPause = time.Second
