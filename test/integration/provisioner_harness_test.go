package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
)

// provisionerTests is the namespace of all claims here.
const provisionerTests = "provisioner-tests"

const selectedNode = "volume.kubernetes.io/selected-node"

// provisioning is a control plane with the PersistentVolume controller, our scheduler, and
// nodes that are simulated.
type provisioning struct {
	cluster *cluster.Cluster
	client  client.Client
	set     kubernetes.Interface
}

// startProvisioning starts the control plane, without a scheduler.
func startProvisioning(t *testing.T) *provisioning {
	t.Helper()
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: t.Name(), Log: t.Output(),
		ControllerManager: true,
		// Not those that look after nodes: no kubelet keeps the simulated ones alive.
		Controllers: []string{
			"serviceaccount-controller", "serviceaccount-token-controller", "persistentvolume-binder-controller",
			"persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller",
			"persistentvolume-expander-controller", "ephemeral-volume-controller", "garbage-collector-controller",
		},
		Manifests: []string{"config/crd", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	set, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	p := &provisioning{cluster: c, client: c.Client(), set: set}
	p.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: provisionerTests}})
	p.create(t, objects.DiskClass("ssd"))
	p.class(t, "ssd", nil)
	return p
}

func (p *provisioning) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatalf("%T %s: %v", o, o.GetName(), err)
		}
	}
}

// class creates a StorageClass of the driver, with the changes that are made to it.
func (p *provisioning) class(t *testing.T, name string, change func(*storagev1.StorageClass)) {
	t.Helper()
	class := objects.StorageClass(name, "ssd")
	class.AllowVolumeExpansion = ptr.To(true)
	if change != nil {
		change(class)
	}
	p.create(t, class)
}

// node makes a node that takes volumes, also for the stock scheduler.
func (p *provisioning) node(t *testing.T, name string, sizeGiB int64) *simNode {
	t.Helper()
	n := newSimNode(t, p.client, name, sizeGiB, diskv1alpha1.DriverName)
	var node corev1.Node
	p.get(t, &node, name)
	// As the kubelet does, for the PersistentVolumes' affinity.
	node.Labels = map[string]string{diskv1alpha1.LabelNode: diskv1alpha1.NodeLabel(name)}
	if err := p.client.Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	return n
}

func (p *provisioning) get(t *testing.T, o client.Object, name string) {
	t.Helper()
	key := client.ObjectKey{Name: name}
	switch o.(type) {
	case *corev1.PersistentVolumeClaim, *corev1.Pod:
		key.Namespace = provisionerTests
	}
	if err := p.client.Get(context.WithoutCancel(t.Context()), key, o); err != nil {
		t.Fatal(err)
	}
}

// pvc creates a claim; node is the one that another scheduler has chosen, if any.
func (p *provisioning) pvc(t *testing.T, name, class, size, node string, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	t.Helper()
	pvc := objects.Claim(provisionerTests, name, class, size)
	if node != "" {
		pvc.Annotations = map[string]string{selectedNode: node}
	}
	if change != nil {
		change(pvc)
	}
	p.create(t, pvc)
	return pvc
}

// choose is another scheduler that chooses a node for a claim.
func (p *provisioning) choose(t *testing.T, name, node string) {
	t.Helper()
	p.edit(t, name, func(pvc *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&pvc.ObjectMeta, selectedNode, node)
	})
}

func (p *provisioning) edit(t *testing.T, name string, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	p.eventually(t, func(ctx context.Context) error {
		var pvc corev1.PersistentVolumeClaim
		p.get(t, &pvc, name)
		change(&pvc)
		return p.client.Update(ctx, &pvc)
	})
}

// resize is a user who wants a claim to be larger.
func (p *provisioning) resize(t *testing.T, name, size string) {
	t.Helper()
	p.edit(t, name, func(pvc *corev1.PersistentVolumeClaim) {
		pvc.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	})
}

func (p *provisioning) eventually(t *testing.T, condition func(context.Context) error) {
	t.Helper()
	if err := cluster.Eventually(context.WithoutCancel(t.Context()), 2*patience, condition); err != nil {
		t.Fatal(err)
	}
}

// bound waits until the claim is bound, and returns it with its volume.
func (p *provisioning) bound(t *testing.T, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	t.Helper()
	pvc, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	p.eventually(t, func(context.Context) error {
		if p.get(t, pvc, name); pvc.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("claim %s is %s, with node %q", name, pvc.Status.Phase, pvc.Annotations[selectedNode])
		}
		return nil
	})
	p.get(t, pv, pvc.Spec.VolumeName)
	return pvc, pv
}

// until waits until a claim is as it should be.
func (p *provisioning) until(t *testing.T, name string, is func(*corev1.PersistentVolumeClaim) bool) *corev1.PersistentVolumeClaim {
	t.Helper()
	pvc := &corev1.PersistentVolumeClaim{}
	p.eventually(t, func(context.Context) error {
		if p.get(t, pvc, name); !is(pvc) {
			return fmt.Errorf("claim %s has annotations %v and status %+v", name, pvc.Annotations, pvc.Status)
		}
		return nil
	})
	return pvc
}

// events are those of an object, of one reason.
func (p *provisioning) events(t *testing.T, object, reason string) []eventsv1.Event {
	t.Helper()
	var out []eventsv1.Event
	for _, namespace := range []string{provisionerTests, metav1.NamespaceDefault} {
		list, err := p.set.EventsV1().Events(namespace).List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Regarding.Name == object && e.Reason == reason && e.ReportingController == "berth-provisioner" {
				out = append(out, e)
			}
		}
	}
	return out
}

// said waits for an event that says something.
func (p *provisioning) said(t *testing.T, object, reason, says string) {
	t.Helper()
	p.eventually(t, func(context.Context) error {
		var notes []string
		for _, e := range p.events(t, object, reason) {
			if strings.Contains(e.Note, says) {
				t.Logf("%s: %s", object, e.Note)
				return nil
			}
			notes = append(notes, e.Note)
		}
		return fmt.Errorf("%s has no event %s that says %q, but %q", object, reason, says, notes)
	})
}

// once holds that of an object one thing was said once.
func (p *provisioning) once(t *testing.T, object, reason string) {
	t.Helper()
	if all := p.events(t, object, reason); len(all) != 1 || all[0].Series != nil {
		t.Errorf("%s has the events %+v, want one", object, all)
	}
}

// realize is the node's agent: the volumes of these PersistentVolumes are on the disk, as
// long as their capacity says, and no others.
func (p *provisioning) realize(t *testing.T, n *simNode, names ...string) {
	t.Helper()
	volumes := map[string]extent.Extent{}
	for _, name := range names {
		var pv corev1.PersistentVolume
		p.get(t, &pv, name)
		v, err := claim.ReadVolume(&pv)
		if err != nil {
			t.Fatal(err)
		}
		volumes[v.Partition] = extent.New(v.Place.Start, v.Size)
	}
	p.publish(t, n, volumes, "")
}

// publish is the node's agent: these volumes are on the disk, by partition, and one of them is being wiped.
func (p *provisioning) publish(t *testing.T, n *simNode, volumes map[string]extent.Extent, wiping string) {
	t.Helper()
	n.mu.Lock()
	n.volumes, n.wiping = volumes, map[string]bool{wiping: true}
	n.mu.Unlock()
	n.check(t)
	if err := n.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// release is the node's agent when a claim is gone: the volume goes, then its
// PersistentVolume.
func (p *provisioning) release(t *testing.T, n *simNode, name string, left ...string) {
	t.Helper()
	p.realize(t, n, left...)
	p.eventually(t, func(ctx context.Context) error {
		var pv corev1.PersistentVolume
		p.get(t, &pv, name)
		if pv.Status.Phase != corev1.VolumeReleased {
			return fmt.Errorf("PersistentVolume %s is %s", name, pv.Status.Phase)
		}
		pv.Finalizers = nil
		if err := p.client.Update(ctx, &pv); err != nil {
			return err
		}
		return client.IgnoreNotFound(p.client.Delete(ctx, &pv))
	})
}

// clear deletes all claims and pods, and their volumes.
func (p *provisioning) clear(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := p.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(provisionerTests), client.GracePeriodSeconds(0)); err != nil {
		t.Error(err)
	}
	if err := p.client.DeleteAllOf(ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(provisionerTests)); err != nil {
		t.Error(err)
	}
	p.eventually(t, func(ctx context.Context) error {
		var claims corev1.PersistentVolumeClaimList
		if err := p.client.List(ctx, &claims, client.InNamespace(provisionerTests)); err != nil || len(claims.Items) > 0 {
			return errors.Join(err, fmt.Errorf("%d claims are left", len(claims.Items)))
		}
		var volumes corev1.PersistentVolumeList
		if err := p.client.List(ctx, &volumes); err != nil {
			return err
		}
		for i := range volumes.Items {
			volumes.Items[i].Finalizers = nil
			if err := p.client.Update(ctx, &volumes.Items[i]); client.IgnoreNotFound(err) != nil {
				return err
			}
			if err := p.client.Delete(ctx, &volumes.Items[i]); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		if len(volumes.Items) > 0 {
			return fmt.Errorf("%d volumes are left", len(volumes.Items))
		}
		return nil
	})
}

// scheduler runs the scheduler's program as its service account, until the test ends.
// leaderElect makes it wait for the lease.
func (p *provisioning) scheduler(t *testing.T, leaderElect bool, flags ...string) *schedulerProcess {
	t.Helper()
	if err := cluster.Build(t.Context(), t.Output(), "cmd/scheduler"); err != nil {
		t.Fatal(err)
	}
	repository, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile(filepath.Join(repository, "config/scheduler/kube-scheduler-config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config.yaml")
	credentials, err := clientcmd.LoadFromFile(p.cluster.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range credentials.AuthInfos {
		a.Impersonate, a.ImpersonateGroups = "system:serviceaccount:kube-system:berth-scheduler", []string{"system:serviceaccounts", "system:authenticated"}
	}
	if err := clientcmd.WriteToFile(*credentials, kubeconfig); err != nil {
		t.Fatal(err)
	}
	adapted := strings.Replace(string(shipped), "clientConnection:\n", "clientConnection:\n  kubeconfig: "+kubeconfig+"\n", 1)
	adapted = strings.Replace(adapted, "leaderElect: true", fmt.Sprintf("leaderElect: %t", leaderElect), 1)
	if err := os.WriteFile(config, []byte(adapted), 0o600); err != nil {
		t.Fatal(err)
	}
	s := launch(t, filepath.Join(dir, "log"), filepath.Join(repository, ".build/bin/scheduler"), slices.Concat([]string{
		"--config=" + config, "--v=2", "--secure-port=0", "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
	}, flags)...)
	t.Cleanup(func() {
		s.kill()
		for line := range strings.Lines(s.log()) {
			if strings.Contains(strings.ToLower(line), "forbidden") || strings.Contains(line, "panic") || strings.Contains(line, "DATA RACE") {
				t.Errorf("the scheduler lacks a right, or worse: %s", line)
			}
			if t.Failed() && (strings.HasPrefix(line, "E") || strings.Contains(line, `logger="provisioner"`)) {
				t.Log(strings.TrimSuffix(line, "\n"))
			}
		}
		s.output.Close()
	})
	return s
}
