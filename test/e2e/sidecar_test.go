package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestSidecar has claims served without Berth's scheduler. Kubernetes' own scheduler places the pods, by the
// CSIStorageCapacity objects of an external-provisioner beside each agent. The external-provisioners have the agents
// make and wipe the volumes.
func TestSidecar(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "containerd", "runc", "blkid", "mkfs.ext4")
	c := startWithProvisioners(t)
	e := newTenant(t, c)
	e.capacitiesAre(ssd)

	// Only one node has room for it.
	pvc := e.claim("data", ssd, "1200Mi")
	pv, p, mark := e.provisioned(pvc)
	e.capacitiesAre(ssd)
	e.noRoomFor("2000Mi")
	raw := onePodOnly(e)
	crash(e, p.node)

	e.unmake(pvc)
	e.wiped(pv, p, mark)
	e.capacitiesAre(ssd)
	// This was not possible before.
	again := e.claim("again", ssd, "1200Mi")
	pv, p, mark = e.provisioned(again)
	e.unmake(again, raw)
	e.wiped(pv, p, mark)
}

// crash kills an agent. Its provisioner is designed to end with it, and both are started again.
func crash(e *tenant, node string) {
	e.t.Helper()
	if err := e.cluster.KillAgent(node); err != nil {
		e.t.Fatal(err)
	}
	if err := e.cluster.StartAgent(e.t.Context(), node); err != nil {
		e.t.Fatal(err)
	}
	e.eventually("the provisioner runs again", func(ctx context.Context) error { return e.cluster.StartProvisioner(ctx, node) })
}

// startWithProvisioners starts a cluster whose second node has the larger disk.
func startWithProvisioners(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: "e2e-sidecar", Log: os.Stderr, Kubelets: true, StockScheduler: true, Agents: true, Provisioners: true,
		Nodes:     []cluster.NodeOptions{{Disks: []cluster.DiskOptions{{Size: units.GiB}}}, {Disks: []cluster.DiskOptions{{Size: 2 * units.GiB}}}},
		AgentArgs: []string{"--orphan-grace=1s"},
		ProvisionerArgs: []string{
			"--node-deployment", "--strict-topology", "--immediate-topology=false", "--extra-create-metadata",
			// No pod owns them here, and the test does not wait a minute for changes that other claims cause.
			"--enable-capacity", "--capacity-ownerref-level=-1", "--capacity-poll-interval=2s",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, node := range c.Nodes() {
			for _, log := range []string{"agent-" + node.Name + ".log", "provisioner-" + node.Name + ".log"} {
				data, err := os.ReadFile(filepath.Join(c.LogDir(), log))
				if err != nil {
					t.Error(err)
				}
				if err := complaintsIn(log, string(data)); err != nil {
					t.Error(err)
				}
			}
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.Kubectl(t.Context(), "patch", "csidriver", v1alpha1.DriverName, "--patch", `{"spec": {"storageCapacity": true}}`); err != nil {
		t.Fatal(err)
	}
	class := &v1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: ssd}}
	class.Spec.Adoption, class.Spec.NewDeviceGrace = v1alpha1.AdoptAutomatic, &metav1.Duration{}
	for _, n := range c.Nodes() {
		class.Spec.Devices.Paths = append(class.Spec.Devices.Paths, n.Disks[0].Path)
	}
	for _, object := range []client.Object{class, storageClass(ssd, ssd, v1alpha1.FSTypeExt4)} {
		if err := c.Client().Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	err = cluster.Eventually(t.Context(), patience, func(ctx context.Context) error { return inService(ctx, c.Client(), 2) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stockPod is a pod of Kubernetes' own scheduler.
func (e *tenant) stockPod(name string, pvc *corev1.PersistentVolumeClaim) *corev1.Pod {
	pod := e.podOf(name, claimed("data", pvc))
	pod.Spec.SchedulerName = corev1.DefaultSchedulerName
	return pod
}

// provisioned makes the claim, has a pod write to its volume, and another one read that. It asserts that the volume is
// on the second node.
func (e *tenant) provisioned(pvc *corev1.PersistentVolumeClaim) (pv *corev1.PersistentVolume, p place, mark string) {
	e.t.Helper()
	pod := e.stockPod(pvc.Name+"-first", pvc)
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	pv = e.boundTo(pvc)
	if pod.Spec.NodeName != "node2" {
		e.t.Errorf("pod %s is on %s, which has no room", pod.Name, pod.Spec.NodeName)
	}
	p = e.findProvisioned(pod, pv)
	e.isPartition(e.device(pod, "/data"), v1alpha1.FSTypeExt4, p)
	mark = canary(e)
	e.write(pod, mark)
	e.delete(pod)
	e.gone(pod)
	pod = e.stockPod(pvc.Name+"-second", pvc)
	e.create(pod)
	e.ready(pod)
	e.holds(pod, mark)
	if now := e.findProvisioned(pod, pv); now.allocation.Extent != p.allocation.Extent {
		e.t.Errorf("the volume was at %v and is at %v", p, now)
	}
	e.delete(pod)
	e.gone(pod)
	return pv, p, mark
}

// findProvisioned asserts that a PersistentVolume of the external-provisioner describes the volume that the agent made,
// on the node of its pod.
func (e *tenant) findProvisioned(pod *corev1.Pod, pv *corev1.PersistentVolume) place {
	e.t.Helper()
	id := pv.Spec.CSI.VolumeHandle
	p := e.findPartition("volume "+pv.Name, pod.Spec.NodeName, v1alpha1.PartitionID(id))
	said, err := v1alpha1.ParsePlace(pv.Spec.CSI.VolumeAttributes)
	if err != nil {
		e.t.Fatal(err)
	}
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	if said.Disk != p.disk.ID || said.Extent != p.allocation.Extent || size.Value() != p.allocation.Length {
		e.t.Errorf("PersistentVolume %s says %s at %+v, the node published %+v of disk %s", pv.Name, size.String(), said, p.allocation, p.disk.ID)
	}
	ref := pv.Spec.ClaimRef
	if p.allocation.Volume != id || p.allocation.Owner != ref.Namespace+"/"+ref.Name || p.allocation.OrphanedSince != nil {
		e.t.Errorf("volume %s is published as %+v", pv.Name, p.allocation)
	}
	return p
}

// capacitiesAre waits until the CSIStorageCapacity of each node has the figures that the node publishes.
func (e *tenant) capacitiesAre(class string) {
	e.t.Helper()
	e.eventually("CSIStorageCapacity is up to date", func(ctx context.Context) error {
		list := &storagev1.CSIStorageCapacityList{}
		if err := e.client.List(ctx, list, client.InNamespace(metav1.NamespaceSystem)); err != nil {
			return err
		}
		for _, n := range e.cluster.Nodes() {
			status, err := e.published(ctx, n.Name)
			if err != nil {
				return err
			}
			var free, largest int64
			for _, f := range status.Disks[0].Free {
				free += f.Length
				largest = max(largest, f.Length)
			}
			if err := shown(list.Items, class, n.Name, free, largest); err != nil {
				return err
			}
		}
		return nil
	})
}

// shown returns nil if there is one CSIStorageCapacity of a node and it has these figures.
func shown(list []storagev1.CSIStorageCapacity, class, node string, free, largest int64) error {
	var said []string
	for _, c := range list {
		if c.StorageClassName == class && c.NodeTopology.MatchLabels[v1alpha1.LabelNode] == node && c.Capacity != nil && c.MaximumVolumeSize != nil {
			said = append(said, fmt.Sprintf("%d, at most %d", c.Capacity.Value(), c.MaximumVolumeSize.Value()))
		}
	}
	if want := fmt.Sprintf("%d, at most %d", free, largest); len(said) != 1 || said[0] != want {
		return fmt.Errorf("of %s is said %q, free are %s", node, said, want)
	}
	return nil
}

// noRoomFor asserts that a pod waits whose claim is too large for each node. The claim is refused if a scheduler
// without that knowledge chooses a node for it.
func (e *tenant) noRoomFor(size string) {
	e.t.Helper()
	pvc := e.claim("large", ssd, size)
	pod := e.stockPod("large", pvc)
	e.make(pvc)
	e.create(pod)
	e.eventually("the pod waits for space", func(context.Context) error {
		if message := e.waits(pod); lacks(message, []string{"2 node(s) did not have enough free storage"}) != "" {
			return fmt.Errorf("it waits because of %q", message)
		}
		return nil
	})
	if _, err := e.cluster.Kubectl(e.t.Context(), "annotate", "--namespace", e.namespace, "persistentvolumeclaim", pvc.Name, selectedNode+"=node1"); err != nil {
		e.t.Fatal(err)
	}
	e.event(pvc, "ProvisioningFailed", "no room on node node1: largest free extent of class ssd is 1021Mi, wants 2000Mi")
	e.eventually("the node is chosen again", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		if node := pvc.Annotations[selectedNode]; node != "" {
			return fmt.Errorf("it is %s", node)
		}
		return nil
	})
	if pvc.Status.Phase != corev1.ClaimPending {
		e.t.Errorf("the claim is %s", pvc.Status.Phase)
	}
	e.waits(pod)
	e.delete(pod)
	e.gone(pod)
	e.unmake(pvc)
}

// selectedNode is the annotation by which a scheduler sets the node of a volume for provisioners.
const selectedNode = "volume.kubernetes.io/selected-node"

// onePodOnly asserts that a raw block volume is for one pod where the claim requests that, and returns the claim.
func onePodOnly(e *tenant) *corev1.PersistentVolumeClaim {
	e.t.Helper()
	pvc := e.claim("raw", ssd, "100Mi")
	block := corev1.PersistentVolumeBlock
	pvc.Spec.VolumeMode = &block
	pvc.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	first, second := e.stockPod("raw-first", pvc), e.stockPod("raw-second", pvc)
	asDevice(first)
	asDevice(second)
	e.make(pvc)
	e.create(first)
	e.ready(first)
	p := e.findProvisioned(first, e.boundTo(pvc))
	if out := e.exec(first, "blockdev --getsize64 /dev/data"); out != strconv.FormatInt(p.allocation.Length, 10) || p.allocation.Length != 100*units.MiB {
		e.t.Errorf("the device has %s bytes, the volume %d", out, p.allocation.Length)
	}
	e.create(second)
	if message := e.waits(second); !strings.Contains(message, string(corev1.ReadWriteOncePod)) {
		e.t.Errorf("the second pod waits because of %q", message)
	}
	e.delete(first)
	e.ready(second)
	e.delete(second)
	e.gone(second)
	return pvc
}
