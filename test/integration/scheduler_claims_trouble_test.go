package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/test/units"
)

// halfDone: a scheduler crashed after it had made the volume and before it changed the
// claim. Who comes after it goes on from there, although another node would fit better.
func halfDone(t *testing.T, s *schedulers) {
	tight := newSimNode(t, s.client, "sim-0", 2, diskv1alpha1.DriverName)
	wide := newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, tight, wide)
	// Without its controllers the claim stays as it is.
	thaw := s.freeze(t, "kube-controller-manager")
	class := &storagev1.StorageClass{}
	class.Name = "ssd"
	s.reload(t, class)
	pvc := s.pvc(t, "data", "ssd", 2)
	wanted, err := claim.Request(pvc, class)
	if err != nil {
		t.Fatal(err)
	}
	place := diskv1alpha1.Place{Disk: simDisk(wide.name), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 2 * units.GiB}}
	pv := claim.NewVolume(pvc, class, wanted, wide.name, place)
	s.make(t, pv)
	pod := withClaims(diskPod("db", 1), "data")
	s.create(t, pod)
	s.eventually(t, func(ctx context.Context) error {
		if volumes := s.volumes(t); len(volumes) != 1 {
			return fmt.Errorf("there are %d volumes", len(volumes))
		}
		return nil
	})
	thaw()
	s.waitNode(t, pod)
	if pod.Spec.NodeName != wide.name {
		t.Errorf("the pod is on %s, its volume on %s", pod.Spec.NodeName, wide.name)
	}
	if have, _ := s.volumeOf(t, "data"); have.UID != pv.UID {
		t.Errorf("the claim is bound to %s", have.Name)
	}
	s.holdApart(t)
}

// claimsKilled kills the scheduler's process while claims are between all their steps: its
// client is slow, and decisions are made much faster than they are written.
func claimsKilled(t *testing.T, s *schedulers) {
	const room, wanted = 60, 70
	nodes := fleet(t, s, room/5)
	followClaims(t, s.client, nodes...)
	defer s.killScheduler(t)()
	for i := range wanted {
		name := fmt.Sprintf("killed-%02d", i)
		s.pvc(t, name, "ssd", 1)
		s.create(t, claimPod(name, name))
	}
	start := func(qps string) *schedulerProcess {
		return runScheduler(t, s.cluster, "", "qps: 1000", "qps: "+qps, "burst: 2000", "burst: 10", "leaderElect: true", "leaderElect: false")
	}
	for _, at := range []int{1, 12, 24, 36} {
		scheduler := start("30")
		s.eventually(t, func(context.Context) error {
			if have := len(s.volumes(t)); have < at {
				return fmt.Errorf("there are %d volumes, want %d", have, at)
			}
			return nil
		})
		scheduler.kill()
		volumes, bound := len(s.volumes(t)), len(s.bound(t))
		t.Logf("killed with %d volumes made and %d pods bound, of %d", volumes, bound, room)
		if bound >= room {
			t.Error("it was killed too late to show anything")
		}
	}
	start("1000")
	s.waitBound(t, room)
	if bound := s.waitDecided(t); len(bound) != room {
		t.Errorf("%d pods are bound, want %d", len(bound), room)
	}
	if total := s.holdApart(t); total != room*units.GiB {
		t.Errorf("%d GiB are recorded, want %d", total/units.GiB, room)
	}
	s.eventually(t, func(context.Context) error {
		for _, pv := range s.volumes(t) {
			if pv.Status.Phase != corev1.VolumeBound {
				return fmt.Errorf("volume %s is %s", pv.Name, pv.Status.Phase)
			}
		}
		return nil
	})
	for _, n := range nodes {
		n.check(t)
		if moved, _ := n.counts(); moved > 0 {
			t.Errorf("node %s moved %d volumes: space was sold twice", n.name, moved)
		}
	}
}

// claimDeleted: the claim is deleted when its volume was made and the two are not bound, for
// which this scheduler waits. With policy Retain, too, nothing is left: no pod has ever used
// the volume.
func claimDeleted(t *testing.T, s *schedulers) {
	s.storageClass(t, "keep", func(c *storagev1.StorageClass) {
		retain := corev1.PersistentVolumeReclaimRetain
		c.ReclaimPolicy = &retain
	})
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	defer s.killScheduler(t)()
	waiting := runScheduler(t, s.cluster, "", "bindTimeoutSeconds: 600", "controllerPatience: 10m", "leaderElect: true", "leaderElect: false")
	defer waiting.kill()
	for _, class := range []string{"ssd", "keep"} {
		t.Run(class, func(t *testing.T) {
			thaw := s.freeze(t, "kube-controller-manager")
			pvc := s.pvc(t, "data", class, 10)
			pod := claimPod("db-"+class, "data")
			s.create(t, pod)
			s.eventually(t, func(ctx context.Context) error {
				if len(s.volumes(t)) != 1 {
					return errors.New("there is no volume yet")
				}
				return nil
			})
			start := time.Now()
			if err := s.client.Delete(t.Context(), pvc); err != nil {
				t.Fatal(err)
			}
			s.eventually(t, func(context.Context) error {
				if pv := s.volumes(t)[0]; pv.DeletionTimestamp == nil || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
					return errors.New("the volume is not deleted")
				}
				return nil
			})
			t.Logf("noticed and deleted in %s", time.Since(start).Round(time.Millisecond))
			s.waitEvent(t, pod.Name, "the claim was deleted")
			thaw()
			s.waitNoVolumes(t)
			s.eventually(t, func(ctx context.Context) error {
				if err := s.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err == nil {
					return errors.New("the claim is still there")
				}
				return nil
			})
			// A new claim of that name is another, and the pod waits for it.
			s.pvc(t, "data", class, 10)
			s.waitNode(t, pod)
			s.holdApart(t)
			s.clearClaims(t)
		})
	}
}

// classDeleted: what a claim wants is not known without its class. When that is there again,
// it goes on.
func classDeleted(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	class := s.storageClass(t, "fleeting", nil)
	s.pvc(t, "data", "fleeting", 4)
	if err := s.client.Delete(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	pod := claimPod("db", "data")
	s.create(t, pod)
	s.waitEvent(t, "db", `"fleeting" not found`)
	if volumes := s.volumes(t); len(volumes) != 0 {
		t.Errorf("there are %d volumes", len(volumes))
	}
	s.storageClass(t, "fleeting", nil)
	s.waitNode(t, pod)
	if _, v := s.volumeOf(t, "data"); v.Size != 4*units.GiB {
		t.Errorf("the volume has %d bytes", v.Size)
	}
}

// claimWrites counts what a claim costs the API server beside the pod, its claim, and the
// pod's binding.
func claimWrites(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	followClaims(t, s.client, nodes...)
	const pods = 20
	for i := range pods {
		s.pvc(t, fmt.Sprintf("counted-%02d", i), "ssd", 1)
	}
	before := s.writes(t)
	var waited []time.Duration
	for i := range pods {
		name := fmt.Sprintf("counted-%02d", i)
		pod := claimPod(name, name)
		start := time.Now()
		s.create(t, pod)
		s.waitNode(t, pod)
		waited = append(waited, time.Since(start))
	}
	slices.Sort(waited)
	s.eventually(t, func(context.Context) error {
		for _, pv := range s.volumes(t) {
			if pv.Status.Phase != corev1.VolumeBound {
				return fmt.Errorf("volume %s is %s", pv.Name, pv.Status.Phase)
			}
		}
		return nil
	})
	t.Logf("from creation to bound, one after the other: median %s, longest %s", waited[len(waited)/2].Round(time.Millisecond), waited[len(waited)-1].Round(time.Millisecond))
	var total float64
	for what, n := range s.writes(t) {
		n = (n - before[what]) / pods
		if n < 0.1 {
			continue
		}
		t.Logf("%.2f × %s", n, what)
		switch {
		case what == "POST pods", what == "POST pods/binding", what == "POST events", what == "PUT nodediskcapacities/status":
		case what == "PATCH nodediskcapacities": // who owns a disk, once for each disk
		case strings.Contains(what, "("): // refused
		default:
			total += n
		}
	}
	want := 4.0
	pvc := &corev1.PersistentVolumeClaim{}
	pvc.Namespace, pvc.Name = schedulerTests, "counted-00"
	s.reload(t, pvc)
	if slices.ContainsFunc(pvc.Status.Conditions, isUnused) {
		want++
	}
	t.Logf("%.2f writes a pod beyond its creation and binding", total)
	if total > want+0.1 {
		t.Errorf("%.2f writes a pod, want %.0f", total, want)
	}
}

// isUnused reports whether it is the condition that kube-controller-manager writes to each claim from 1.37 on.
func isUnused(c corev1.PersistentVolumeClaimCondition) bool { return c.Type == "Unused" }
