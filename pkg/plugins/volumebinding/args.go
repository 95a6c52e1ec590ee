package volumebinding

import (
	"fmt"
	"math"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// defaultBindTimeoutSeconds is the default of the stock plugin: other drivers may need it.
const defaultBindTimeoutSeconds = 600

// maxBindTimeoutSeconds is the most that a time.Duration holds.
const maxBindTimeoutSeconds = int64(math.MaxInt64 / time.Second)

// defaultControllerPatience is ten times what the controller takes when it has nothing else to do. By then it has seen
// the volume, however much else it has to do.
const defaultControllerPatience = 250 * time.Millisecond

// DiskVolumeBindingArgs are the plugin's arguments in the scheduler's configuration.
type DiskVolumeBindingArgs struct {
	metav1.TypeMeta `json:",inline"`

	// BindTimeoutSeconds is how long a pod waits for its claims to be bound before it is put back; 600 if not set.
	// Claims of Berth are bound in milliseconds.
	BindTimeoutSeconds int64 `json:"bindTimeoutSeconds,omitempty"`

	// ControllerPatience is how long a pod waits for kube-controller-manager to bind its claims of Berth; 250ms if not
	// set. On most clusters it takes a tenth of that. But the controller handles one claim after the other. When it is
	// behind, the scheduler writes into the claim what the controller would. With a long time the controller alone
	// binds claims.
	ControllerPatience *metav1.Duration `json:"controllerPatience,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *DiskVolumeBindingArgs) DeepCopyObject() runtime.Object {
	out := *a
	if a.ControllerPatience != nil {
		patience := *a.ControllerPatience
		out.ControllerPatience = &patience
	}
	return &out
}

// SetDefaults fills in what is not set.
func (a *DiskVolumeBindingArgs) SetDefaults() {
	if a.BindTimeoutSeconds == 0 {
		a.BindTimeoutSeconds = defaultBindTimeoutSeconds
	}
	if a.ControllerPatience == nil {
		a.ControllerPatience = &metav1.Duration{Duration: defaultControllerPatience}
	}
}

// Validate refuses invalid arguments.
func (a *DiskVolumeBindingArgs) Validate() error {
	if a.BindTimeoutSeconds < 0 || a.BindTimeoutSeconds > maxBindTimeoutSeconds {
		return fmt.Errorf("args of plugin %s: bindTimeoutSeconds is %d: it must be 0 to %d", Name, a.BindTimeoutSeconds, maxBindTimeoutSeconds)
	}
	if a.ControllerPatience != nil && a.ControllerPatience.Duration < 0 {
		return fmt.Errorf("args of plugin %s: controllerPatience is %v: it must not be negative", Name, a.ControllerPatience.Duration)
	}
	return nil
}

func (a *DiskVolumeBindingArgs) timeout() time.Duration {
	return time.Duration(a.BindTimeoutSeconds) * time.Second
}

// AddArgsToScheme registers the arguments, like AddArgsToScheme of package diskcapacity.
func AddArgsToScheme(scheme *runtime.Scheme) error {
	internal := configv1.SchemeGroupVersion
	internal.Version = runtime.APIVersionInternal
	scheme.AddKnownTypes(configv1.SchemeGroupVersion, &DiskVolumeBindingArgs{})
	scheme.AddKnownTypes(internal, &DiskVolumeBindingArgs{})
	scheme.AddTypeDefaultingFunc(&DiskVolumeBindingArgs{}, func(obj any) { obj.(*DiskVolumeBindingArgs).SetDefaults() })
	return nil
}

// argsFrom reads what the framework passes to New.
func argsFrom(obj runtime.Object) (*DiskVolumeBindingArgs, error) {
	args := &DiskVolumeBindingArgs{}
	switch given := obj.(type) {
	case nil:
	case *DiskVolumeBindingArgs:
		*args = *given
	default:
		return nil, fmt.Errorf("args of plugin %s are %T, want *DiskVolumeBindingArgs: %s", Name, obj, diskcapacity.Register)
	}
	args.SetDefaults()
	return args, args.Validate()
}
