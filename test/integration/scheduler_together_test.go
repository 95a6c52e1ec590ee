package integration

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// withOtherConstraints: what a pod wants of CPU, taints, other pods and zones decides where it
// may go; disk space decides only among those nodes. The nodes' sizes are such that disk space
// alone would choose otherwise each time.
func withOtherConstraints(t *testing.T, s *schedulers) {
	// Two nodes a zone; the smaller fits more tightly, those of the first zone most.
	var nodes []*simNode
	for i, size := range []int64{5, 6, 8, 10, 12, 14} {
		n := newSimNode(t, s.client, fmt.Sprintf("sim-%d", i), size, diskv1alpha1.DriverName)
		n.label(t, corev1.LabelTopologyZone, fmt.Sprintf("zone-%d", i/2))
		nodes = append(nodes, n)
	}
	nodes[0].limitCPU(t, "1")
	nodes[1].taint(t)
	follow(t, s.client, nodes...)
	app := func(pod *corev1.Pod, name string) *corev1.Pod {
		pod.Labels = map[string]string{"app": name}
		return pod
	}
	term := func(name, key string) []corev1.PodAffinityTerm {
		return []corev1.PodAffinityTerm{{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, TopologyKey: key}}
	}
	place := func(pod *corev1.Pod) string {
		t.Helper()
		s.create(t, pod)
		s.waitNode(t, pod)
		return pod.Spec.NodeName
	}
	want := func(what string, pod *corev1.Pod, node string) {
		t.Helper()
		if got := place(pod); got != node {
			t.Errorf("%s: the pod is on %s, want %s", what, got, node)
		}
	}

	want("nothing but a disk", diskPod("disk", 1), "sim-0")
	want("more CPU than the tightest node has", withCPU(diskPod("cpu", 1), "2"), "sim-2")
	tolerant := withCPU(diskPod("tolerant", 1), "2")
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: "example.com/reserved", Operator: corev1.TolerationOpExists}}
	want("a taint that is tolerated", tolerant, "sim-1")

	leader := app(diskPod("leader", 1), "leader")
	leader.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "sim-5"}
	want("a node selector", leader, "sim-5")
	follower := diskPod("follower", 1)
	follower.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: term("leader", corev1.LabelTopologyZone)}}
	want("affinity to a pod in another zone", follower, "sim-4")

	// Replicas of which no two share a zone: in one zone no node has the CPU, so there can be two.
	apart := map[string]bool{}
	replica := func(i int) *corev1.Pod {
		pod := withCPU(app(diskPod(fmt.Sprintf("replica-%d", i), 1), "replica"), "2")
		pod.Spec.Affinity = &corev1.Affinity{
			PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: term("replica", corev1.LabelTopologyZone)},
		}
		return pod
	}
	for i := range 2 {
		node := place(replica(i))
		apart[node] = true
	}
	if len(apart) != 2 || apart["sim-0"] || apart["sim-1"] {
		t.Errorf("replicas that must not share a zone are on %v", apart)
	}
	s.create(t, replica(2))
	s.waitCondition(t, "replica-2", "didn't match pod anti-affinity rules")

	// Spread evenly over two zones: the tightest nodes are all in one of them.
	zones := map[string]int{}
	for i := range 4 {
		pod := withCPU(app(diskPod(fmt.Sprintf("spread-%d", i), 1), "spread"), "2")
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector:    &metav1.LabelSelector{MatchLabels: map[string]string{"app": "spread"}},
			NodeTaintsPolicy: new(corev1.NodeInclusionPolicyHonor),
		}}
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
				Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: []string{"zone-1", "zone-2"},
			}}}},
		}}}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: place(pod)}}
		s.reload(t, node)
		zones[node.Labels[corev1.LabelTopologyZone]]++
	}
	if zones["zone-1"] != 2 || zones["zone-2"] != 2 {
		t.Errorf("four pods are spread over the zones as %v", zones)
	}
	places(t, s.bound(t), 1)
	for _, n := range nodes {
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods", n.name, moved, evicted)
		}
	}
}

// bothProfiles: the profile default-scheduler with the plugins, too, beside berth in one process.
// They share the ledger: none sells what the other has sold, and each wakes for what the other's
// pods leave.
func bothProfiles(t *testing.T, s *schedulers) {
	const each, wanted = 8, 60
	nodes := fleet(t, s, each)
	follow(t, s.client, nodes...)
	defer s.killScheduler(t)()
	// The shipped profile twice, by reference.
	runScheduler(t, s.cluster, "", "- schedulerName: berth\n  plugins:\n", "- schedulerName: berth\n  plugins: &plugins\n",
		"  pluginConfig:\n", "  pluginConfig: &args\n",
		"      bindTimeoutSeconds: 600\n", "      bindTimeoutSeconds: 600\n- schedulerName: default-scheduler\n  plugins: *plugins\n  pluginConfig: *args\n",
		"leaderElect: true", "leaderElect: false")
	for i := range wanted {
		pod := diskPod(fmt.Sprintf("pod-%02d", i), 1)
		if i%2 == 0 {
			pod.Spec.SchedulerName = corev1.DefaultSchedulerName
		}
		s.create(t, pod)
	}
	room := each * len(nodes)
	count := func() (ours, stock []corev1.Pod) {
		for _, pod := range s.bound(t) {
			if pod.Spec.SchedulerName == corev1.DefaultSchedulerName {
				stock = append(stock, pod)
			} else {
				ours = append(ours, pod)
			}
		}
		return ours, stock
	}
	s.waitBound(t, room)
	s.waitDecided(t)
	ours, stock := count()
	if len(ours)+len(stock) != room || len(ours) == 0 || len(stock) == 0 {
		t.Errorf("%d and %d pods of the two profiles are bound, want %d", len(ours), len(stock), room)
	}
	places(t, append(ours, stock...), 1)
	// What the one's pods leave, pods of the other get.
	for i := range ours {
		if err := s.client.Delete(t.Context(), &ours[i], client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually(t, func(context.Context) error {
		if _, now := count(); len(now) != wanted/2 {
			return fmt.Errorf("%d pods of the profile default-scheduler are bound, want %d", len(now), wanted/2)
		}
		return nil
	})
	s.waitBound(t, min(room, wanted-len(ours)))
	places(t, s.bound(t), 1)
	for _, n := range nodes {
		n.check(t)
		if moved, evicted := n.counts(); moved+evicted > 0 {
			t.Errorf("node %s moved %d volumes and evicted %d pods: space was sold twice", n.name, moved, evicted)
		}
	}
}

func (n *simNode) label(t *testing.T, key, value string) {
	t.Helper()
	node := &corev1.Node{}
	n.must(t, n.client.Get(t.Context(), client.ObjectKey{Name: n.name}, node))
	node.Labels[key] = value
	n.must(t, n.client.Update(t.Context(), node))
}
