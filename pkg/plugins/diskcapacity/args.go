package diskcapacity

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"
)

// maxSyncTimeout bounds how long a scheduler schedules no pod at all, also none without disk volumes: the pods of all
// profiles wait with the one in PreFilter.
const maxSyncTimeout = time.Second

// DiskCapacityArgs are the plugin's arguments in the scheduler's configuration. The
// name is prescribed by the configuration's format: the plugin's name and "Args".
//
//nolint:revive // The stutter is the format's.
type DiskCapacityArgs struct {
	metav1.TypeMeta `json:",inline"`

	// SyncTimeout is how long a pod with disk volumes waits, when the scheduler has just started, for the nodes'
	// published capacity to be loaded. After that the pod is put back and retried. 1s if not set, which is the most.
	SyncTimeout metav1.Duration `json:"syncTimeout,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *DiskCapacityArgs) DeepCopyObject() runtime.Object {
	out := *a
	return &out
}

// SetDefaults fills in what is not set.
func (a *DiskCapacityArgs) SetDefaults() {
	if a.SyncTimeout.Duration == 0 {
		a.SyncTimeout.Duration = maxSyncTimeout
	}
}

// Validate refuses invalid arguments.
func (a *DiskCapacityArgs) Validate() error {
	if a.SyncTimeout.Duration < 0 || a.SyncTimeout.Duration > maxSyncTimeout {
		return fmt.Errorf("args of plugin %s: syncTimeout is %v: it must be 0s to %v, all pods of the scheduler wait with the first", Name, a.SyncTimeout.Duration, maxSyncTimeout)
	}
	return nil
}

// AddArgsToScheme registers the arguments under the external and the internal version of the scheduler's configuration.
// One Go type is used for both, so that no conversion has to be generated. Registered arguments are decoded strictly: a
// misspelled field is an error when the scheduler starts.
func AddArgsToScheme(scheme *runtime.Scheme) error {
	internal := configv1.SchemeGroupVersion
	internal.Version = runtime.APIVersionInternal
	scheme.AddKnownTypes(configv1.SchemeGroupVersion, &DiskCapacityArgs{})
	scheme.AddKnownTypes(internal, &DiskCapacityArgs{})
	scheme.AddTypeDefaultingFunc(&DiskCapacityArgs{}, func(obj any) { obj.(*DiskCapacityArgs).SetDefaults() })
	return nil
}

// argsFrom reads what the framework passes to New: nothing if the arguments are not registered and none are configured.
func argsFrom(obj runtime.Object) (*DiskCapacityArgs, error) {
	args := &DiskCapacityArgs{}
	switch given := obj.(type) {
	case nil:
	case *DiskCapacityArgs:
		*args = *given
	default:
		return nil, fmt.Errorf("args of plugin %s are %T, want *DiskCapacityArgs: %s", Name, obj, Register)
	}
	args.SetDefaults()
	return args, args.Validate()
}
