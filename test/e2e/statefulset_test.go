package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
)

// replica is a pod of a StatefulSet with its two volumes.
type replica struct {
	pod    *corev1.Pod
	claims [2]*corev1.PersistentVolumeClaim
	pvs    [2]*corev1.PersistentVolume
	places [2]place
	mark   string
}

// replicaVolumes are the volumes of each replica: their claims' templates and directories.
var replicaVolumes = [2]string{"data", "log"}

// TestStatefulSet asserts that each replica has its own data and log, on disks of different classes. It keeps them when
// the pod, the agent, the kubelet or the node is restarted.
func TestStatefulSet(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	set := e.statefulSet("db", 3)
	start := time.Now()
	e.make(set)
	replicas := e.replicas(set)
	t.Logf("3 replicas with 2 claims each ran after %s", time.Since(start))
	nodes := map[string]bool{}
	for _, r := range replicas {
		nodes[r.pod.Spec.NodeName] = true
		e.isReplica(r)
	}
	if len(nodes) != 3 {
		t.Fatalf("the replicas are on the nodes %v", nodes)
	}

	one, two := replicas[1], replicas[2]
	start = time.Now()
	e.delete(one.pod)
	e.replaced(one)
	t.Logf("pod %s was back %s after it was deleted", one.pod.Name, time.Since(start))
	e.keeps(replicas)

	node := two.pod.Spec.NodeName
	if err := errors.Join(e.cluster.KillAgent(node), e.cluster.StartAgent(t.Context(), node)); err != nil {
		t.Fatal(err)
	}
	e.keeps(replicas)
	if err := e.cluster.RestartKubelet(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	e.answers(two.pod)
	e.keeps(replicas)
	for _, r := range replicas {
		if n := restarts(r.pod); n != 0 {
			t.Errorf("the container of %s was restarted %d times", r.pod.Name, n)
		}
	}
	// This pod runs with a kubelet and an agent that were restarted.
	e.delete(two.pod)
	e.replaced(two)
	e.keeps(replicas)

	e.rebootUnder(two)
	e.keeps(replicas)
	e.noWarnings()

	e.unmake(set)
	for _, r := range replicas {
		e.gone(r.pod)
		e.unmake(r.claims[0], r.claims[1])
	}
	for _, r := range replicas {
		for i := range replicaVolumes {
			e.wiped(r.pvs[i], r.places[i], r.mark)
		}
	}
}

// rebootUnder reboots the node of a replica, which also has a pod with an inline volume, and waits until all its pods
// run again.
func (e *tenant) rebootUnder(r *replica) {
	e.t.Helper()
	node := r.pod.Spec.NodeName
	inline := e.podOf("inline", volume("data", ssd, "64Mi", "ext4"))
	inline.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	e.create(inline)
	e.ready(inline)
	before := e.find(inline, "data")
	e.write(inline, r.mark)
	start := time.Now()
	if err := e.cluster.Reboot(e.t.Context(), node); err != nil {
		e.t.Fatal(err)
	}
	for _, pod := range []*corev1.Pod{inline, r.pod} {
		uid := pod.UID
		e.eventually("pod "+pod.Name+" is started again", func(ctx context.Context) error {
			if err := e.isReady(ctx, pod); err != nil {
				return err
			}
			if restarts(pod) == 0 {
				return errors.New("its container was not restarted")
			}
			return nil
		})
		e.answers(pod)
		if pod.UID != uid {
			e.t.Errorf("pod %s was replaced", pod.Name)
		}
	}
	e.t.Logf("all pods of %s ran %s after it went down", node, time.Since(start))
	e.holds(inline, r.mark)
	if after := e.find(inline, "data"); after.allocation != before.allocation {
		e.t.Errorf("before the reboot the inline volume was %+v, now it is %+v", before.allocation, after.allocation)
	}
	e.delete(inline)
	e.gone(inline)
	e.isFree(before)
}

// statefulSet has replicas on different nodes, and starts all at once.
func (e *tenant) statefulSet(name string, replicas int32) *appsv1.StatefulSet {
	labels := map[string]string{"app": name}
	template := e.podOf("any", corev1.Volume{Name: "data"}, corev1.Volume{Name: "log"})
	template.Spec.Volumes = nil // the claims' templates add them
	template.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
		}},
	}}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels},
			PodManagementPolicy: appsv1.ParallelPodManagement,
			Template:            corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: template.Spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{
				{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: objects.ClaimSpec(ssd, "400Mi")},
				{ObjectMeta: metav1.ObjectMeta{Name: "log"}, Spec: objects.ClaimSpec(hdd, "200Mi")},
			},
		},
	}
}

// replicas waits until all of them run, and finds where their volumes are.
func (e *tenant) replicas(set *appsv1.StatefulSet) []*replica {
	e.t.Helper()
	var all []*replica
	for i := range *set.Spec.Replicas {
		r := &replica{pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: fmt.Sprintf("%s-%d", set.Name, i)}}}
		e.eventually("replica "+r.pod.Name+" runs", func(ctx context.Context) error { return e.isReady(ctx, r.pod) })
		for i, name := range replicaVolumes {
			r.claims[i] = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: name + "-" + r.pod.Name}}
			r.pvs[i] = e.boundTo(r.claims[i])
			r.places[i] = e.findVolume(r.pvs[i])
		}
		r.mark = canary(e)
		all = append(all, r)
	}
	return all
}

// isReplica asserts that the pod's directories are the partitions of its claims, and writes into both.
func (e *tenant) isReplica(r *replica) {
	e.t.Helper()
	for i, fsType := range []string{v1alpha1.FSTypeXFS, v1alpha1.FSTypeExt4} {
		directory := "/" + replicaVolumes[i]
		if p := r.places[i]; p.node != r.pod.Spec.NodeName || p.disk.Class != []string{ssd, hdd}[i] {
			e.t.Errorf("%s of %s is at %v, a disk of class %s", directory, r.pod.Name, p, p.disk.Class)
		}
		e.isPartition(e.device(r.pod, directory), fsType, r.places[i])
		e.writeTo(r.pod, directory, r.mark)
		if want := v1alpha1.ClaimVolumeID(r.claims[i].UID); r.pvs[i].Name != want {
			e.t.Errorf("the volume of claim %s is called %s", r.claims[i].Name, r.pvs[i].Name)
		}
	}
}

// replaced waits until another pod exists in place of the replica's.
func (e *tenant) replaced(r *replica) {
	e.t.Helper()
	old := r.pod.UID
	e.eventually("pod "+r.pod.Name+" is recreated and runs", func(ctx context.Context) error {
		if err := e.isReady(ctx, r.pod); err != nil {
			return err
		}
		if r.pod.UID == old || r.pod.DeletionTimestamp != nil {
			return errors.New("it is still the old one")
		}
		return nil
	})
}

// keeps asserts that each replica is on its node and has its data, at the same place.
func (e *tenant) keeps(replicas []*replica) {
	e.t.Helper()
	for _, r := range replicas {
		e.ready(r.pod)
		for i, name := range replicaVolumes {
			e.holdsIn(r.pod, "/"+name, r.mark)
			pv := e.boundTo(r.claims[i])
			if pv.UID != r.pvs[i].UID {
				e.t.Errorf("claim %s has another volume", r.claims[i].Name)
			}
			if p := e.findVolume(pv); p.node != r.pod.Spec.NodeName || p.allocation != r.places[i].allocation {
				e.t.Errorf("the volume of claim %s was at %v, and is at %v; its pod is on %s", r.claims[i].Name, r.places[i], p, r.pod.Spec.NodeName)
			}
		}
	}
}

// answers waits until the kubelet runs commands in the pod again.
func (e *tenant) answers(pod *corev1.Pod) {
	e.t.Helper()
	e.eventually("the kubelet knows pod "+pod.Name, func(ctx context.Context) error {
		_, err := e.cluster.Kubectl(ctx, "exec", "--namespace", e.namespace, pod.Name, "--container", "main", "--", "true")
		return errors.Join(err, e.client.Get(ctx, client.ObjectKeyFromObject(pod), pod))
	})
}
