package main

import (
	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/config"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/provisioner"
)

// controllerOptions are the flags of Berth's controllers.
type controllerOptions struct {
	publishCapacity bool
}

func (o *controllerOptions) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.publishCapacity, "publish-storage-capacity", false,
		"Publish a CSIStorageCapacity for every StorageClass of Berth and every node, for the cluster autoscaler and other schedulers. Berth's own scheduler does not need them. Without it, those that were published are deleted.")
}

// newControllers makes the controllers that work with this scheduler's ledger.
func newControllers(cc *config.CompletedConfig, shared *diskcapacity.Shared, o controllerOptions) *provisioner.Controllers {
	return provisioner.New(provisioner.Options{
		Client:          cc.Client,
		Factory:         cc.InformerFactory,
		Shared:          shared,
		Recorder:        cc.EventBroadcaster.NewRecorder("berth-provisioner"),
		PublishCapacity: o.publishCapacity,
		Namespace:       cc.ComponentConfig.LeaderElection.ResourceNamespace,
	})
}
