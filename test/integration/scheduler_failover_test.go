package integration

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/test/objects"
)

// TestSchedulerAgents runs real schedulers and real agents on real disks.
func TestSchedulerAgents(t *testing.T) {
	a := startAgents(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *agents)
	}{
		{"leaders killed", leadersKilled},
		{"two schedulers at once", twoAtOnce},
		{"refusal", refusal},
		{"agent stopped", agentStopped},
		{"agent not registered", agentNotRegistered},
		{"node recreated", nodeRecreated},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					a.showLogs(t)
				}
				a.empty(t)
			})
			test.run(t, a)
		})
	}
}

// burst creates pods with a small volume each: inline, of a claim, or generic ephemeral in turn.
type burst struct {
	*agents
	made int
	seen map[string]bool // every pod that was ever bound
	// fresh are those that were bound since the last leader was killed.
	fresh []corev1.Pod
}

func (b *burst) more(t *testing.T, count int) {
	t.Helper()
	for range count {
		name := fmt.Sprintf("burst-%03d", b.made)
		switch b.made % 3 {
		case 0:
			b.create(t, smallPod(name))
		case 1:
			pvc := objects.Claim(schedulerTests, name, "ssd", "0")
			pvc.Spec.Resources.Requests[corev1.ResourceStorage] = *quantity(smallVolume)
			b.make(t, pvc)
			b.create(t, claimPod(name, name))
		case 2:
			pod := withEphemeral(plainPod(name, "berth"), "data", "ssd", 0)
			pod.Spec.Volumes[0].Ephemeral.VolumeClaimTemplate.Spec.Resources.Requests[corev1.ResourceStorage] = *quantity(smallVolume)
			b.create(t, pod)
		}
		b.made++
	}
}

// waitLeader waits until a scheduler leads and so many pods are bound that were not before.
func (b *burst) waitLeader(t *testing.T, c *candidates, count int) (leads *schedulerProcess) {
	t.Helper()
	b.fresh = nil
	b.eventually(t, func(context.Context) error {
		var err error
		if leads, err = c.leader(t); err != nil {
			return err
		}
		for _, pod := range b.bound(t) {
			if !b.seen[pod.Name] {
				b.seen[pod.Name] = true
				b.fresh = append(b.fresh, pod)
			}
		}
		if len(b.fresh) < count {
			return fmt.Errorf("%d more pods are bound, want %d", len(b.fresh), count)
		}
		return nil
	})
	return leads
}

// churn ends some of the bound pods, with their claims, and others come. Half of those that go are the last that
// were bound: their nodes may be about to make the volumes.
func (b *burst) churn(t *testing.T, count int) {
	t.Helper()
	bound := b.bound(t)
	gone := b.fresh[max(0, len(b.fresh)-count/2):]
	for i, n := 0, min(count-len(gone), len(bound)); i < n; i++ {
		gone = append(gone, bound[i*len(bound)/n])
	}
	for i := range gone {
		pod := &gone[i]
		if err := client.IgnoreNotFound(b.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0))); err != nil {
			t.Fatal(err)
		}
		pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: pod.Name}}
		if err := client.IgnoreNotFound(b.client.Delete(t.Context(), pvc)); err != nil {
			t.Fatal(err)
		}
	}
	b.more(t, count)
}

// leadersKilled kills the leading scheduler (SIGKILL) again and again while pods come and go,
// and another stands by. Its client is slow, so that whenever it dies many pods are between Reserve
// and Bind. No place is sold twice, and none is kept for nothing.
func leadersKilled(t *testing.T, a *agents) {
	const kills, room, waiting, come = 20, agentNodes * disksEach * volumesEach, 20, 6
	b := &burst{agents: a, seen: map[string]bool{}}
	b.more(t, room+waiting)
	run := schedulerProgram(t, a.cluster, "system:serviceaccount:kube-system:berth-scheduler", "qps: 1000", "qps: 40", "burst: 2000", "burst: 10",
		"leaderElect: true", "leaderElect: true\n  leaseDuration: 1s\n  renewDeadline: 900ms\n  retryPeriod: 200ms")
	c := &candidates{run: run, standing: []*schedulerProcess{run(), run()}}
	start := time.Now()
	for kill := range kills {
		leads := b.waitLeader(t, c, 1+kill%5)
		t.Logf("kill %d after %s: %d of %d pods were bound", kill+1, time.Since(start).Round(100*time.Millisecond), len(b.seen), b.made)
		c.replace(leads)
		b.churn(t, come)
	}
	b.waitLeader(t, c, 0)
	// All that has room is placed, where it was recorded, and nothing twice.
	a.waitBound(t, room)
	a.asRecorded(t)
	if total := a.holdApart(t); total != room*smallVolume {
		t.Errorf("%d volumes are recorded, want %d", total/smallVolume, room)
	}
	if notes := a.events(t, refused...); len(notes) > 0 {
		t.Errorf("the nodes had to refuse what was decided: %q", notes)
	}
	// Nothing is reserved without an owner, neither on the disks nor in the last leader's memory.
	a.empty(t)
	a.fillWhole(t)
	t.Logf("%d leaders killed, %d gave up by themselves, %d pods created, %d of %d places in use at the end", kills, c.gaveUp, b.made, room, room)
}

// twoAtOnce: two schedulers of the same profile are at work and do not know of each other. What
// both sold is settled by the nodes: one of two volumes is put elsewhere, or its pod is evicted
// and recreated, until every pod has its volume.
func twoAtOnce(t *testing.T, a *agents) {
	const room = agentNodes * disksEach * volumesEach
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: schedulerTests, Name: "twice"}}
	set.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "twice"}}
	set.Spec.Template.Labels = set.Spec.Selector.MatchLabels
	set.Spec.Template.Spec = plainPod("any", "berth").Spec
	a.make(t, set)
	t.Cleanup(func() {
		if err := a.client.Delete(context.WithoutCancel(t.Context()), set); err != nil {
			t.Error(err)
		}
	})
	made := 0
	pod := func() *corev1.Pod {
		made++
		// The later, the nearer to the begin of a list.
		pod := smallPod(fmt.Sprintf("twice-%03d", 999-made))
		pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
		// There is no kubelet to end it.
		atOnce := int64(0)
		pod.Spec.TerminationGracePeriodSeconds = &atOnce
		return pod
	}
	// The first decides at once where they all go, in the order in which they come, and is slow to
	// write it down. In the midst of that it stands still, until the second, which knows nothing of
	// it, has begun at the other end.
	run := schedulerProgram(t, a.cluster, "", "qps: 1000", "qps: 15", "burst: 2000", "burst: 5", "leaderElect: true", "leaderElect: false")
	first := run()
	for range room {
		a.create(t, pod())
	}
	begun := len(a.waitBound(t, 1))
	first.signal(syscall.SIGSTOP)
	defer first.signal(syscall.SIGCONT)
	run()
	a.waitBound(t, begun+room/4)
	first.signal(syscall.SIGCONT)
	a.eventually(t, func(context.Context) error {
		for range room - len(a.pods(t)) {
			a.create(t, pod())
		}
		pods, recorded, realized := a.pods(t), a.recorded(t), a.realized(t)
		if len(pods) != room || len(recorded) != room || len(realized) != room {
			return fmt.Errorf("%d pods, of which %d are bound, and %d volumes, want %d", len(pods), len(recorded), len(realized), room)
		}
		for partition := range recorded {
			if _, there := realized[partition]; !there {
				return fmt.Errorf("volume %s is not made", partition)
			}
		}
		return nil
	})
	elsewhere, recorded := 0, a.recorded(t)
	for partition, is := range a.realized(t) {
		if recorded[partition] != is {
			elsewhere++
		}
	}
	t.Logf("of %d volumes %d are elsewhere than recorded; %d pods were evicted and recreated", room, elsewhere, made-room)
	if elsewhere+made-room == 0 {
		t.Error("the two never sold the same place: this shows nothing")
	}
}
