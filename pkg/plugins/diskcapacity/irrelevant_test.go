package diskcapacity

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
)

// TestIrrelevant asserts that no hint wakes a pod for an event that Irrelevant reports, and that Irrelevant reports no
// event that could help a pod.
func TestIrrelevant(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	on := func(node string, pod *corev1.Pod) *corev1.Pod {
		pod.Spec.NodeName = node
		return pod
	}
	wiped := on("n2", podOf("wiped", 2))
	b.publish(t, "n1", 10)
	b.publish(t, "n2", 30, volumeOf(wiped, 40, 2))
	b.storageClass(t, "fast", nil)
	its := b.claim(t, "its", "fast", 50, nil)
	waiting := []*corev1.Pod{
		// It fits n2, which another plugin refuses.
		podOf("inline", 20),
		claimPod("with-claim", "its"),
	}
	for _, pod := range waiting {
		b.store(t, pod)
		b.filter(t, pod)
	}
	namesake := its.DeepCopy()
	namesake.Namespace = "elsewhere"
	other := b.claim(t, "other", "fast", 2, nil)
	ours := b.volume(t, other, "n1", 0)
	foreign := ours.DeepCopy()
	foreign.Spec.CSI.Driver = "foreign"
	bindable := ours.DeepCopy()
	bindable.Spec.ClaimRef = nil
	had := ours.DeepCopy()
	had.Spec.ClaimRef.Name = "its"
	for name, test := range map[string]struct {
		resource   fwk.EventResource
		action     fwk.ActionType
		old, obj   any
		irrelevant bool
	}{
		"a pod without disks ends":            {fwk.Pod, fwk.Delete, st.MakePod().Name("plain").Node("n2").Obj(), nil, true},
		"a pod ends where none fits":          {fwk.Pod, fwk.Delete, on("n1", podOf("disk", 2)), nil, true},
		"a pod ends where one fits":           {fwk.Pod, fwk.Delete, on("n2", podOf("disk", 2)), nil, false},
		"a pod ends, its volume is not wiped": {fwk.Pod, fwk.Delete, wiped, nil, true},
		"a pod with a claim ends":             {fwk.Pod, fwk.Delete, on("n2", claimPod("claimed", "other")), nil, false},
		"a claim that no pod waits for":       {fwk.PersistentVolumeClaim, fwk.Add, nil, other, true},
		"its update":                          {fwk.PersistentVolumeClaim, fwk.Update, other, other, true},
		"a claim of that name elsewhere":      {fwk.PersistentVolumeClaim, fwk.Add, nil, namesake, true},
		"a claim that one waits for":          {fwk.PersistentVolumeClaim, fwk.Add, nil, its, false},
		"a volume that has a claim":           {fwk.PersistentVolume, fwk.Add, nil, ours, true},
		"a volume that has none":              {fwk.PersistentVolume, fwk.Update, ours, bindable, false},
		"a foreign volume is gone":            {fwk.PersistentVolume, fwk.Delete, foreign, nil, true},
		"a volume is gone where none fits":    {fwk.PersistentVolume, fwk.Delete, ours, nil, true},
		"a volume is gone where one fits":     {fwk.PersistentVolume, fwk.Delete, b.volume(t, other, "n2", 0), nil, false},
		"the volume of what one waits for":    {fwk.PersistentVolume, fwk.Delete, had, nil, false},
		"a node joins":                        {fwk.Node, fwk.Add, nil, st.MakeNode().Name("n1").Obj(), false},
	} {
		t.Run(name, func(t *testing.T) {
			if irrelevant := b.plugin.Irrelevant(klog.Background(), test.old, test.obj); irrelevant != test.irrelevant {
				t.Errorf("irrelevant is %v, want %v", irrelevant, test.irrelevant)
			}
			for _, pod := range waiting {
				if hint := b.hint(t, test.resource, test.action, pod, test.old, test.obj); test.irrelevant && hint == fwk.Queue {
					t.Errorf("it wakes the pod %s", pod.Name)
				}
			}
		})
	}
}
