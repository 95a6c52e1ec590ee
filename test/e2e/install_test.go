package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestInstallation installs Berth like a user, with the shipped images and manifests, into a cluster with Kubernetes'
// own scheduler, and uses it.
func TestInstallation(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "make", "ctr")
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	disks := []cluster.DiskOptions{{Size: units.GiB, SectorSize: 512}, {Size: units.GiB, SectorSize: 4096}}
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "e2e-installation", Log: os.Stderr, Kubelets: true, StockScheduler: true,
		Nodes: []cluster.NodeOptions{{Disks: disks}, {Disks: disks}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	images(t, c, repository)
	links := linkDisks(t, c)
	if _, err := c.Kubectl(ctx, "apply", "-k", overlay(t, c, repository, links)); err != nil {
		t.Fatal(err)
	}
	class := &v1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: pair}}
	class.Spec.Adoption, class.Spec.NewDeviceGrace = v1alpha1.AdoptAutomatic, &metav1.Duration{}
	class.Spec.Devices.Paths = []string{links + "/*"}
	e := newTenant(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.Kubectl(context.Background(), "logs", "--namespace", metav1.NamespaceSystem, "--prefix", "--tail=25",
				"--selector", "app.kubernetes.io/name in (berth-scheduler,berth-nodeagent)")
			t.Log(out)
		}
	})
	e.eventually("the DiskClass is made", func(ctx context.Context) error { return client.IgnoreAlreadyExists(e.client.Create(ctx, class)) })
	e.eventually("Berth runs", e.rolledOut)
	e.eventually("all disks are in service", func(ctx context.Context) error { return inService(ctx, e.client, 4) })

	pod, placed := useInstallation(e)
	claimInInstallation(e)

	// New agents continue with the running pods.
	e.noComplaints()
	failOver(e)
	mark := canary(e)
	e.write(pod, mark)
	if _, err := c.Kubectl(ctx, "rollout", "restart", "--namespace", metav1.NamespaceSystem, "daemonset/berth-nodeagent"); err != nil {
		t.Fatal(err)
	}
	e.eventually("the new agents run", e.rolledOut)
	e.holds(pod, mark)
	p, q := e.find(pod, "data"), e.find(placed, "data")
	e.delete(pod, placed)
	e.gone(pod, placed)
	e.isFree(p)
	e.isFree(q)
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("%q is still on %s", mark, p.machine.Path)
	}
	e.noComplaints()
}

// useInstallation runs a pod of profile berth and one that the node places itself. It also has the kernel report a
// change of a device to the agent.
func useInstallation(e *tenant) (pod, placed *corev1.Pod) {
	e.t.Helper()
	pod = e.podOf("scheduled", volume("data", pair, "300Mi", "xfs"))
	placed = e.podOf("placed", volume("data", pair, "300Mi", "ext4"))
	placed.Spec.SchedulerName = corev1.DefaultSchedulerName
	// One after the other: at the same time both may choose the same extent, and then the node moves the second one.
	e.create(pod)
	e.ready(pod)
	p := e.find(pod, "data")
	e.asRecorded(pod, "data", p)
	e.create(placed)
	e.ready(placed)
	e.isPartition(e.device(pod, "/data"), "xfs", p)
	e.isPartition(e.device(placed, "/data"), "ext4", e.find(placed, "data"))
	e.event(placed, "VolumePlaced", "data")

	// The kernel's events about devices reach the agent in its pod.
	limit(e.t, p.machine.Path, uint64(units.MiB))
	defer limit(e.t, p.machine.Path, 0)
	e.eventually("the agent sees a disk go", func(ctx context.Context) error { return inService(ctx, e.client, 3) })
	limit(e.t, p.machine.Path, 0)
	e.eventually("the agent sees the disk come back", func(ctx context.Context) error { return inService(ctx, e.client, 4) })

	return pod, placed
}

// claimInInstallation has claims served, grown and wiped by Berth's own programs, in their images and with their
// permissions. One is of a pod of profile berth, and one of a pod of the cluster's own scheduler.
func claimInInstallation(e *tenant) {
	e.t.Helper()
	for profile, fsType := range map[string]string{"berth": v1alpha1.FSTypeXFS, corev1.DefaultSchedulerName: v1alpha1.FSTypeExt4} {
		class := storageClass(pair+"-"+fsType, pair, fsType)
		pvc := e.claim(fsType, class.Name, "300Mi")
		pod := e.podOf(fsType, claimed("data", pvc))
		pod.Spec.SchedulerName = profile
		e.make(class, pvc)
		e.create(pod)
		e.ready(pod)
		pv := e.boundTo(pvc)
		e.isPartition(e.device(pod, "/data"), fsType, e.findVolume(pv))
		mark := canary(e)
		e.write(pod, mark)
		e.expand(pvc, "400Mi")
		if fsType == v1alpha1.FSTypeExt4 {
			// It may not be allowed to grow while it is mounted.
			e.delete(pod)
			e.gone(pod)
			pod = e.podOf(fsType+"-again", claimed("data", pvc))
			pod.Spec.SchedulerName = profile
			e.create(pod)
			e.ready(pod)
		}
		e.hasGrown(pvc, 400*units.MiB)
		e.holds(pod, mark)
		p := e.findVolume(pv)
		e.delete(pod)
		e.unmake(pvc)
		e.gone(pod)
		e.wiped(pv, p, mark)
	}
}

// failOver deletes the leading scheduler, and has the other one place a pod.
func failOver(e *tenant) {
	e.t.Helper()
	leader, err := e.leader(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	start := time.Now()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: leader}}
	if err := e.client.Delete(e.t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		e.t.Fatal(err)
	}
	// Before that, the old leader may still work.
	e.eventually("the other scheduler leads", func(ctx context.Context) error {
		now, err := e.leader(ctx)
		if err == nil && now == leader {
			err = fmt.Errorf("%s still holds the lease", leader)
		}
		return err
	})
	next := e.podOf("next", volume("data", pair, "300Mi", ""))
	e.create(next)
	e.ready(next)
	e.asRecorded(next, "data", e.find(next, "data"))
	e.t.Logf("a pod ran %s after the leading scheduler was deleted", time.Since(start))
}

// leader is the name of the scheduler's pod that holds the lease.
func (e *tenant) leader(ctx context.Context) (string, error) {
	lease := &coordinationv1.Lease{}
	if err := e.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "berth-scheduler"}, lease); err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return "", errors.New("no scheduler holds the lease")
	}
	pod, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return pod, nil
}

// images makes the container images and imports them on the nodes: there is no registry. They are for this machine's
// architecture, and of its own packages if those that are declared cannot be had any more.
func images(t *testing.T, c *cluster.Cluster, repository string) {
	t.Helper()
	const out = ".build/e2e-images"
	build := exec.CommandContext(t.Context(), "make", "--no-print-directory", "images",
		"IMAGES=--out "+out+" --allow-unpinned --platforms linux/"+runtime.GOARCH)
	build.Dir = repository
	log, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("make images: %v: %s", err, log)
	}
	t.Logf("make images:\n%s", log)
	for _, n := range c.Nodes() {
		for _, image := range []string{"scheduler", "nodeagent"} {
			path := filepath.Join(repository, out, image+"-"+runtime.GOARCH+".tar")
			if _, err := c.Exec(t.Context(), n.Name, "ctr", "--namespace", "k8s.io", "images", "import", path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// linkDisks makes links to the disks by the names of their nodes, and returns their folder. All nodes share /dev here,
// so each agent needs the names of its own disks.
func linkDisks(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	folder := fmt.Sprintf("/dev/disk/by-berth-%d", os.Getpid())
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for _, n := range c.Nodes() {
		for i, d := range n.Disks {
			if err := os.Symlink("../../"+filepath.Base(d.Path), fmt.Sprintf("%s/%s-%d", folder, n.Name, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return folder
}

// overlay is the shipped kustomization with the agents' disks and the address of the API server. In this cluster
// nothing routes the addresses of services.
func overlay(t *testing.T, c *cluster.Cluster, repository, links string) string {
	t.Helper()
	server, err := url.Parse(c.RESTConfig().Host)
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(c.Dir(), "overlay")
	shipped, err := filepath.Rel(folder, filepath.Join(repository, "config"))
	if err != nil {
		t.Fatal(err)
	}
	way := fmt.Sprintf(`{name: KUBERNETES_SERVICE_HOST, value: %q}, {name: KUBERNETES_SERVICE_PORT, value: %q}`, server.Hostname(), server.Port())
	text := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%q]
patches:
- patch: |
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: berth-nodeagent, namespace: kube-system}
    spec: {template: {spec: {containers: [{name: nodeagent, env: [%s]}]}}}
- target: {kind: DaemonSet, name: berth-nodeagent}
  patch: '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--devices=%s/$(NODE_NAME)-*"}]'
- patch: |
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: berth-scheduler, namespace: kube-system}
    spec: {template: {spec: {containers: [{name: scheduler, env: [%s]}]}}}
`, shipped, way, links, way)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return folder
}

// rolledOut returns nil when the agents and the schedulers of the newest generation run.
func (e *tenant) rolledOut(ctx context.Context) error {
	agents := &appsv1.DaemonSet{}
	if err := e.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "berth-nodeagent"}, agents); err != nil {
		return err
	}
	want := int32(len(e.cluster.Nodes()))
	if s := agents.Status; s.ObservedGeneration != agents.Generation || s.UpdatedNumberScheduled != want || s.NumberAvailable != want {
		return fmt.Errorf("the agents are not up: %+v", s)
	}
	scheduler := &appsv1.Deployment{}
	if err := e.client.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "berth-scheduler"}, scheduler); err != nil {
		return err
	}
	if s := scheduler.Status; s.ObservedGeneration != scheduler.Generation || s.AvailableReplicas != *scheduler.Spec.Replicas {
		return fmt.Errorf("the schedulers are not up: %+v", s)
	}
	return nil
}

// noComplaints asserts that Berth's programs have all permissions that they need and were never restarted.
func (e *tenant) noComplaints() {
	e.t.Helper()
	pods := &corev1.PodList{}
	if err := e.client.List(e.t.Context(), pods, client.InNamespace(metav1.NamespaceSystem)); err != nil {
		e.t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !strings.HasPrefix(pod.Name, "berth-") {
			continue
		}
		if n := restarts(pod); n > 0 {
			e.t.Errorf("%s was restarted %d times", pod.Name, n)
		}
		out, err := e.cluster.Kubectl(e.t.Context(), "logs", "--namespace", pod.Namespace, pod.Name)
		if err != nil {
			e.t.Error(err)
		}
		if out == "" {
			e.t.Errorf("%s has logged nothing", pod.Name)
		}
		if err := complaintsIn(pod.Name, out); err != nil {
			e.t.Error(err)
		}
	}
}
