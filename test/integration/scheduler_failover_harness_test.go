package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// agentNodes nodes of disksEach disks, each with room for volumesEach volumes of smallVolume.
	agentNodes, disksEach, volumesEach = 4, 2, 12
	smallVolume                        = 64 * units.MiB
)

// agents is a control plane with the controllers of claims, and nodes that have real disks
// and real agents; only the kubelets are missing.
type agents struct {
	*schedulers
	// whole is what every disk can hold, in bytes.
	whole int64
}

func startAgents(t *testing.T) *agents {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "mkfs.ext4", "blkdiscard")
	nodes := make([]cluster.NodeOptions, agentNodes)
	for i := range nodes {
		name := fmt.Sprintf("agent%d", i+1)
		nodes[i] = cluster.NodeOptions{Name: name, Labels: map[string]string{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(name)}}
		for range disksEach {
			nodes[i].Disks = append(nodes[i].Disks, cluster.DiskOptions{Size: volumesEach*smallVolume + 8*units.MiB})
		}
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: t.Name(), Log: t.Output(), Nodes: nodes, Agents: true,
		AgentArgs:         []string{"--orphan-grace=1s", "--orphan-limit=1000", "--eviction-grace=1s"},
		ControllerManager: true, Controllers: claimControllers,
		Manifests: []string{"config/crd", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml", "config/samples/diskclass.yaml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	a := &agents{schedulers: &schedulers{cluster: c, client: c.Client()}}
	a.make(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}})
	a.storageClass(t, "ssd", nil)
	a.eventually(t, func(ctx context.Context) error {
		account := &corev1.ServiceAccount{}
		return a.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: "default"}, account)
	})
	a.allFree(t)
	for _, ndc := range a.published(t) {
		a.whole = ndc.Status.Disks[0].Free[0].Length
	}
	if a.whole/smallVolume != volumesEach {
		t.Fatalf("a disk has room for %d volumes", a.whole/smallVolume)
	}
	return a
}

func (a *agents) published(t *testing.T) []diskv1alpha1.NodeDiskCapacity {
	t.Helper()
	var list diskv1alpha1.NodeDiskCapacityList
	if err := a.client.List(context.WithoutCancel(t.Context()), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// allFree waits until every node publishes all its disks as free.
func (a *agents) allFree(t *testing.T) {
	t.Helper()
	a.eventually(t, func(context.Context) error {
		disks := 0
		for _, ndc := range a.published(t) {
			if err := consistent(&ndc.Status); err != nil {
				t.Errorf("node %s: %v", ndc.Name, err)
			}
			for _, d := range ndc.Status.Disks {
				if d.State != diskv1alpha1.DiskReady || len(d.Allocations) > 0 || len(d.Free) != 1 {
					return fmt.Errorf("disk %s of node %s is %s, with %d volumes", d.Device, ndc.Name, d.State, len(d.Allocations))
				}
				disks++
			}
		}
		if disks != agentNodes*disksEach {
			return fmt.Errorf("%d disks are published", disks)
		}
		return nil
	})
}

// empty deletes all pods, claims and volumes, and waits until the nodes have wiped them. Only
// the agents and the controllers remove a volume.
func (a *agents) empty(t *testing.T) {
	t.Helper()
	a.clear(t)
	if err := a.client.DeleteAllOf(context.WithoutCancel(t.Context()), &corev1.PersistentVolumeClaim{}, client.InNamespace(schedulerTests)); err != nil {
		t.Error(err)
	}
	a.waitNoVolumes(t)
	a.allFree(t)
}

// showLogs prints the ends of the agents' logs, which go with the cluster.
func (a *agents) showLogs(t *testing.T) {
	t.Helper()
	const lines, columns = 40, 400
	paths, err := filepath.Glob(filepath.Join(a.cluster.LogDir(), "agent-*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		for _, line := range all[max(0, len(all)-lines):] {
			t.Logf("%s: %s", filepath.Base(path), line[:min(len(line), columns)])
		}
	}
}

// place is where a volume is.
type place struct {
	disk          string
	start, length int64
}

// recorded is where the API says that the volumes of bound pods and of claims are, by partition.
func (a *agents) recorded(t *testing.T) map[string]place {
	t.Helper()
	all := map[string]place{}
	for _, pv := range a.volumes(t) {
		if v, err := claim.ReadVolume(&pv); err == nil {
			all[v.Partition] = place{v.Place.Disk, v.Place.Start, v.Size}
		}
	}
	for _, pod := range a.bound(t) {
		volumes, err := request.FromPod(&pod)
		if err != nil {
			t.Fatal(err)
		}
		record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
		if len(volumes) > 0 && err != nil {
			t.Errorf("pod %s is bound without a record: %v", pod.Name, err)
		}
		for _, v := range volumes {
			at, _ := record.Volume(v.Name)
			all[v.Partition] = place{at.Disk, at.Start, at.Length}
		}
	}
	return all
}

// realized is where the nodes have made the volumes that are not being wiped, by partition.
func (a *agents) realized(t *testing.T) map[string]place {
	t.Helper()
	all := map[string]place{}
	for _, ndc := range a.published(t) {
		if err := consistent(&ndc.Status); err != nil {
			t.Errorf("node %s: %v", ndc.Name, err)
		}
		for _, d := range ndc.Status.Disks {
			for _, v := range d.Allocations {
				if v.Phase == diskv1alpha1.PhaseFormatted {
					all[v.Partition] = place{d.ID, v.Start, v.Length}
				}
			}
		}
	}
	return all
}

// asRecorded waits until the nodes have made everything that is recorded, and holds that each
// volume is where it was recorded to be.
func (a *agents) asRecorded(t *testing.T) {
	t.Helper()
	a.eventually(t, func(context.Context) error {
		recorded, realized := a.recorded(t), a.realized(t)
		for partition, at := range recorded {
			is, there := realized[partition]
			if !there {
				return fmt.Errorf("volume %s, recorded at %+v, is not made", partition, at)
			}
			if is != at {
				t.Fatalf("volume %s was recorded at %+v and is at %+v; the nodes say: %q", partition, at, is, a.events(t, refused...))
			}
		}
		if len(realized) != len(recorded) {
			return fmt.Errorf("the nodes have %d volumes, %d are recorded", len(realized), len(recorded))
		}
		return nil
	})
}

// events are those of the given reasons, of whatever object: "kind name: note".
func (a *agents) events(t *testing.T, reasons ...string) []string {
	t.Helper()
	var list eventsv1.EventList
	if err := a.client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, e := range list.Items {
		if slices.Contains(reasons, e.Reason) {
			notes = append(notes, fmt.Sprintf("%s %s: %s", e.Regarding.Kind, e.Regarding.Name, e.Note))
		}
	}
	return notes
}

// waitSays waits for an event of that reason that says so.
func (a *agents) waitSays(t *testing.T, reason, object, says string) {
	t.Helper()
	a.eventually(t, func(context.Context) error {
		notes := a.events(t, reason)
		if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, object+": ") && strings.Contains(n, says) }) {
			return fmt.Errorf("%s has no event %s that says %q, but %q", object, reason, says, notes)
		}
		return nil
	})
}

// refused are the reasons of events with which a node has the last word.
var refused = []string{"VolumeReplaced", "NoRoomForVolume", "EvictingForVolume"}

// candidates are schedulers that want the same lease.
type candidates struct {
	run      func() *schedulerProcess
	standing []*schedulerProcess
	// gaveUp counts those that could not renew their lease in time, on a busy machine. Others
	// took their place, as if they had been killed.
	gaveUp int
}

// leader is who has the lease.
func (c *candidates) leader(t *testing.T) (*schedulerProcess, error) {
	t.Helper()
	for i, p := range c.standing {
		if p.hasEnded() {
			if !strings.Contains(p.log(), "Leaderelection lost") {
				t.Fatalf("a scheduler ended by itself: %s", p.log())
			}
			c.gaveUp++
			c.standing[i] = c.run()
		} else if strings.Contains(p.log(), "Successfully acquired lease") {
			return p, nil
		}
	}
	return nil, errors.New("no scheduler has the lease")
}

// replace kills one, and another takes its place among those that stand by.
func (c *candidates) replace(p *schedulerProcess) {
	p.kill()
	c.standing = append(slices.DeleteFunc(c.standing, func(other *schedulerProcess) bool { return other == p }), c.run())
}

// smallPod asks for a small volume.
func smallPod(name string) *corev1.Pod {
	pod := diskPod(name, 0)
	pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = strconv.FormatInt(smallVolume, 10)
	return pod
}

// wholePod asks for a whole disk.
func (a *agents) wholePod(name string) *corev1.Pod {
	pod := diskPod(name, 0)
	pod.Spec.Volumes[0].CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = strconv.FormatInt(a.whole, 10)
	return pod
}

// fillWhole holds that all space can be used: a pod for every disk, each as large as the disk.
func (a *agents) fillWhole(t *testing.T) {
	t.Helper()
	for i := range agentNodes * disksEach {
		a.create(t, a.wholePod(fmt.Sprintf("whole-%d", i)))
	}
	a.waitBound(t, agentNodes*disksEach)
	a.asRecorded(t)
}
