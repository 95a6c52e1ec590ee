package volumebinding

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"
)

// defaultBindTimeoutSeconds is that of the stock plugin: other drivers may need it.
const defaultBindTimeoutSeconds = 600

// DiskVolumeBindingArgs are the plugin's arguments in the scheduler's configuration.
type DiskVolumeBindingArgs struct {
	metav1.TypeMeta `json:",inline"`

	// BindTimeoutSeconds is how long a pod waits for its claims to be bound before it is
	// put back; 600 if not set. Claims of Berth are bound in milliseconds.
	BindTimeoutSeconds int64 `json:"bindTimeoutSeconds,omitempty"`

	// WaitForBound makes a pod wait in the scheduler until kube-controller-manager has noted
	// that its claims of Berth are bound. Without it the kubelet waits for that. Nothing can
	// become of the claim by then but that it is bound to its volume, which names the claim
	// by its UID. But the controller does one claim after the other, and is slower than the
	// scheduler.
	WaitForBound bool `json:"waitForBound,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *DiskVolumeBindingArgs) DeepCopyObject() runtime.Object {
	out := *a
	return &out
}

// SetDefaults fills in what is not set.
func (a *DiskVolumeBindingArgs) SetDefaults() {
	if a.BindTimeoutSeconds == 0 {
		a.BindTimeoutSeconds = defaultBindTimeoutSeconds
	}
}

// Validate refuses arguments that make no sense.
func (a *DiskVolumeBindingArgs) Validate() error {
	if a.BindTimeoutSeconds < 0 {
		return fmt.Errorf("args of plugin %s: bindTimeoutSeconds is %d: it must not be negative", Name, a.BindTimeoutSeconds)
	}
	return nil
}

func (a *DiskVolumeBindingArgs) timeout() time.Duration {
	return time.Duration(a.BindTimeoutSeconds) * time.Second
}

// AddArgsToScheme registers the arguments, as that of package diskcapacity does.
func AddArgsToScheme(scheme *runtime.Scheme) error {
	internal := configv1.SchemeGroupVersion
	internal.Version = runtime.APIVersionInternal
	scheme.AddKnownTypes(configv1.SchemeGroupVersion, &DiskVolumeBindingArgs{})
	scheme.AddKnownTypes(internal, &DiskVolumeBindingArgs{})
	scheme.AddTypeDefaultingFunc(&DiskVolumeBindingArgs{}, func(obj any) { obj.(*DiskVolumeBindingArgs).SetDefaults() })
	return nil
}

// argsFrom understands what the framework passes to New.
func argsFrom(obj runtime.Object) (*DiskVolumeBindingArgs, error) {
	args := &DiskVolumeBindingArgs{}
	switch given := obj.(type) {
	case nil:
	case *DiskVolumeBindingArgs:
		*args = *given
	default:
		return nil, fmt.Errorf("args of plugin %s are %T, want *DiskVolumeBindingArgs: register them with AddArgsToScheme", Name, obj)
	}
	args.SetDefaults()
	return args, args.Validate()
}
