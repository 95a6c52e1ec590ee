// Command scheduler is kube-scheduler with Berth's plugins, and Coscheduling of scheduler-plugins.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	_ "k8s.io/component-base/metrics/prometheus/workqueue" // of the controllers of claims
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "sigs.k8s.io/scheduler-plugins/apis/config/scheme" // the arguments of Coscheduling
	"sigs.k8s.io/scheduler-plugins/pkg/coscheduling"

	"github.com/berthdev/berth/pkg/scheduler"
)

func main() {
	os.Exit(cli.Run(scheduler.NewCommand(app.WithPlugin(coscheduling.Name, coscheduling.New))))
}
