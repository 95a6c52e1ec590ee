package scheduler

import (
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/compatibility"
	baseversion "k8s.io/component-base/version"
)

// emulatedMinors is how many minor versions back kube-scheduler can emulate.
const emulatedMinors = 3

// newComponents returns the registry of --emulated-version and --feature-gates. kube-scheduler's own registry uses the
// program's version as that of Kubernetes. A release of Berth such as v0.5.0 would not start with it, because no
// feature gate exists in Kubernetes 0.5.
func newComponents() compatibility.ComponentGlobalsRegistry {
	built := version.MustParse(baseversion.DefaultKubeBinaryVersion)
	oldest := built.SubtractMinor(emulatedMinors)
	components := compatibility.NewComponentGlobalsRegistry()
	utilruntime.Must(components.Register(compatibility.DefaultKubeComponent,
		compatibility.NewEffectiveVersion(built, false, oldest, oldest), utilfeature.DefaultMutableFeatureGate))
	return components
}
