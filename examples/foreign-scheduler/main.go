// Command foreign-scheduler is a scheduler of another project that also places Berth's volumes. It is kube-scheduler's
// command with a plugin of its own and with Options of Berth. Its profile is in config.yaml.
//
// Do not set gitVersion of k8s.io/component-base when you link such a program: kube-scheduler takes it for the version
// of Kubernetes that it has, and does not start with one below 1.31.
package main

import (
	"context"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/component-base/cli"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	"github.com/berthdev/berth/pkg/scheduler"
)

func main() {
	plugins := append(scheduler.Options(scheduler.Config{}), app.WithPlugin(name, newMaintenance))
	os.Exit(cli.Run(app.NewSchedulerCommand(plugins...)))
}

// name of the plugin in the scheduler's configuration.
const name = "Maintenance"

// label keeps pods off a node.
const label = "example.com/maintenance"

// maintenance keeps pods off nodes that have the label.
type maintenance struct{}

func newMaintenance(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) {
	return maintenance{}, nil
}

func (maintenance) Name() string { return name }

func (maintenance) Filter(_ context.Context, _ fwk.CycleState, _ *corev1.Pod, node fwk.NodeInfo) *fwk.Status {
	if _, found := node.Node().Labels[label]; found {
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, "the node has the label "+label)
	}
	return nil
}
