// Package app is the command line of the node agent: it parses flags, and serves health checks and metrics.
// manifests.go is the subcommand that prints lost PersistentVolumes, uninstall.go those for the removal of Berth.
package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/version"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent"
	"github.com/berthdev/berth/pkg/buildinfo"
)

// flags are the parsed flags of the command line.
type flags struct {
	agent      agent.Options
	kubeconfig string
	metrics    metricsOptions
	health     string
	logs       *logsapi.LoggingConfiguration
}

// NewCommand is the agent's command.
func NewCommand() *cobra.Command {
	f := &flags{logs: logsapi.NewLoggingConfiguration()}
	cmd := &cobra.Command{
		Use:   "nodeagent",
		Short: "Manages the disks of the node it runs on, for pods",
		Args:  cobra.NoArgs,
		// component-base's flag is not used: it calls every program Kubernetes.
		Version: version.Get().GitVersion,
		// An error while the agent runs is not an error in usage.
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := logsapi.ValidateAndApply(f.logs, nil); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx)
		},
	}
	f.add(cmd.Flags())
	cmd.AddCommand(manifests(), uninstallCheck(), uninstallRelease())
	return cmd
}

// add adds the flags to a set.
func (f *flags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.agent.NodeName, "node-name", os.Getenv("NODE_NAME"), "Name of the Node that the agent runs on. The default is $NODE_NAME.")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "Path of a kubeconfig. The default is the pod's service account.")
	fs.StringVar(&f.agent.KubeletDir, "kubelet-dir", "/var/lib/kubelet", "The kubelet's --root-dir. Volumes are mounted below it only. In a container it must be mounted at the same path, with mountPropagation Bidirectional.")
	fs.StringVar(&f.agent.CSISocket, "csi-socket", "", "Path of the socket that the kubelet calls; it must be the same for the kubelet. The default is plugins/disk.berth.dev/csi.sock below --kubelet-dir.")
	fs.StringVar(&f.agent.RegistrationDir, "registration-dir", "", "Folder in which the kubelet looks for drivers. The default is plugins_registry below --kubelet-dir.")
	fs.StringSliceVar(&f.agent.Devices, "devices", nil, "Shell patterns for device paths, such as /dev/nvme*. When given, no other device is looked at, whatever DiskClasses say.")
	fs.DurationVar(&f.agent.OrphanGrace, "orphan-grace", 5*time.Minute, "How long a volume is kept after it was found that its pod is gone, if the agent did not see the pod end.")
	fs.IntVar(&f.agent.OrphanLimit, "orphan-limit", 10, "How many such volumes are wiped without an operator when the API server's data may be lost or old. If there are more, none is wiped until their pods are back or an operator allows it. 0: an operator decides about each.")
	fs.DurationVar(&f.agent.EvictionGrace, "eviction-grace", time.Minute, "How long a pod whose volumes do not fit on the node stays before it is evicted. It concerns pods that a controller other than a DaemonSet makes again.")
	fs.StringVar(&f.metrics.address, "metrics-address", "", "Address for /metrics, such as 127.0.0.1:9810. Empty for none.")
	fs.BoolVar(&f.metrics.secure, "metrics-secure", false, "Serve /metrics with TLS, and only to clients whose token the API server knows and that may get the path /metrics. Without it whatever reaches the address can read the metrics.")
	fs.StringVar(&f.metrics.certFile, "metrics-tls-cert-file", "", "Certificate for --metrics-secure, with its chain. It is read again when it changes. Without it the agent signs one itself.")
	fs.StringVar(&f.metrics.keyFile, "metrics-tls-private-key-file", "", "Key of --metrics-tls-cert-file.")
	fs.IntVar(&f.agent.VolumeMetricsLimit, "volume-metrics-limit", 256, "How many volumes have metrics of their own, about ten series each. 0 for none.")
	fs.StringVar(&f.health, "health-address", "", "Address for /healthz and /readyz, such as :9811. Empty for none.")
	logsapi.AddFlags(f.logs, fs)
}

// run runs the agent with the flags, and serves metrics and health checks if they have an address.
func (f *flags) run(ctx context.Context) error {
	if err := f.validate(); err != nil {
		return err
	}
	if err := agent.CheckRequirements(); err != nil {
		return err
	}
	config, err := f.config()
	if err != nil {
		return err
	}
	f.agent.Config = config
	buildinfo.Register("nodeagent")
	if f.metrics.address != "" {
		f.agent.Metrics = metrics.NewKubeRegistry()
		stop, err := f.metrics.serve(config, f.agent.Metrics)
		if err != nil {
			return err
		}
		defer stop()
	}
	f.agent.Health = agent.NewHealth()
	if f.health != "" {
		stop, err := serveHealth(f.health, f.agent.Health)
		if err != nil {
			return err
		}
		defer stop()
	}
	return agent.Run(ctx, f.agent)
}

// validate checks the flags, and sets the defaults that depend on other flags.
func (f *flags) validate() error {
	if f.agent.NodeName == "" {
		return errors.New("--node-name is missing, and $NODE_NAME is not set")
	}
	if !path.IsAbs(f.agent.KubeletDir) {
		return fmt.Errorf("--kubelet-dir is %q: it must be the absolute path of the kubelet's --root-dir", f.agent.KubeletDir)
	}
	if f.agent.CSISocket == "" {
		f.agent.CSISocket = path.Join(f.agent.KubeletDir, "plugins", diskv1alpha1.DriverName, "csi.sock")
	}
	if f.agent.RegistrationDir == "" {
		f.agent.RegistrationDir = path.Join(f.agent.KubeletDir, "plugins_registry")
	}
	if f.agent.VolumeMetricsLimit < 0 {
		return fmt.Errorf("--volume-metrics-limit is %d, it cannot be less than 0, which means none", f.agent.VolumeMetricsLimit)
	}
	if err := f.metrics.validate(); err != nil {
		return err
	}
	if f.agent.OrphanLimit < 0 {
		return fmt.Errorf("--orphan-limit is %d, it cannot be less than 0, which means that none is wiped until an operator allows it", f.agent.OrphanLimit)
	}
	for _, pattern := range f.agent.Devices {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("--devices: %q is not a pattern: %w", pattern, err)
		}
	}
	return nil
}

// config is how the agent reaches the API server.
func (f *flags) config() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if f.kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find the API server: %w", err)
	}
	// Bursts come from many pods at once on one node. The rest of the time there are hardly any requests.
	config.QPS, config.Burst = 50, 100
	return rest.AddUserAgent(config, "berth-nodeagent"), nil
}
