// Package chart installs the Helm chart into a cluster with real kubelets, as an operator does, and upgrades, tests and
// uninstalls it.
package chart

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
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/build/helm"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	namespace = "berth-system"
	release   = "berth"
	patience  = 4 * time.Minute
	mark      = "what the first pod wrote"
	claimName = "data"
)

// installation is a cluster in which the chart is installed.
type installation struct {
	*cluster.Cluster
	t        *testing.T
	programs *helm.Programs
	// values are the options of helm that name the values.
	values []string
}

// TestChart installs the chart into a namespace of its own, with accounts of its own names, and without Berth's CRDs
// in the cluster. Then it upgrades it with a pod running. helm uninstall is refused while there is a volume. With the
// check off the volume stays, and a second installation serves it with its data. When the volume is deleted, helm
// uninstall removes everything but the CRDs.
func TestChart(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "make", "ctr", "containerd", "runc")
	i := start(t)
	ctx := t.Context()

	// First installation.
	i.helm(append([]string{"install", release, i.programs.Chart()}, i.values...)...)
	i.eventually("the disk is in service", i.inService)
	i.helm("test", release, "--timeout=3m")
	i.create(claim())
	first := pod("first", "echo '"+mark+"' > /data/mark; sync; exec sleep infinity")
	i.create(first)
	i.eventually("the first pod runs", i.running(first))
	i.eventually("the mark is written", i.holds(first))

	// An upgrade adopts what a hook made, and touches no pod with a volume.
	i.helm("upgrade", release, i.programs.Chart(), "--wait", "--timeout=4m", "--reuse-values", "--set=nodeagent.logging.verbosity=2")
	i.eventually("the first pod runs on", i.running(first))
	if n := i.restarts(first); n > 0 {
		t.Errorf("the pod was restarted %d times", n)
	}
	class := &v1alpha1.DiskClass{}
	i.get(client.ObjectKey{Name: "ssd"}, class)
	if class.Annotations["helm.sh/hook"] != "" {
		t.Errorf("the DiskClass is still a hook's: %v", class.Annotations)
	}

	// Refused.
	out, err := i.tryHelm("uninstall", release, "--timeout=3m")
	if err == nil || !strings.Contains(out, "default/"+claimName) {
		t.Fatalf("helm uninstall with a volume: error %v, want a refusal that names the claim:\n%s", err, out)
	}
	t.Logf("helm uninstall was refused: %s", out)
	i.get(client.ObjectKey{Namespace: namespace, Name: "berth-nodeagent"}, &appsv1.DaemonSet{})
	i.eventually("the first pod still runs", i.running(first))

	// The volume is kept. Helm takes no upgrade of a release that was to be removed.
	i.helm("rollback", release, "2", "--wait", "--timeout=4m")
	i.helm("upgrade", release, i.programs.Chart(), "--wait", "--timeout=4m", "--reuse-values", "--set=uninstall.check=false")
	i.remove(first)
	t.Logf("helm uninstall: %s", i.helm("uninstall", release, "--wait", "--timeout=4m"))
	pv := i.volume()
	for _, finalizer := range pv.Finalizers {
		if finalizer == v1alpha1.FinalizerVolume {
			t.Errorf("PersistentVolume %s has a finalizer, and no agent runs that would remove it", pv.Name)
		}
	}
	i.isGone("DaemonSet", client.ObjectKey{Namespace: namespace, Name: "berth-nodeagent"}, &appsv1.DaemonSet{})
	i.get(client.ObjectKey{Name: "ssd"}, class)

	// A second installation serves it.
	i.helm(append([]string{"install", release, i.programs.Chart()}, i.values...)...)
	second := pod("second", "exec sleep infinity")
	i.create(second)
	i.eventually("the second pod runs", i.running(second))
	i.eventually("the second pod has what the first one wrote", i.holds(second))

	// The agent wipes the volume of a deleted claim, though it has no finalizer. Then there are no volumes.
	i.remove(second, claim())
	i.eventually("the volume is wiped", func(ctx context.Context) error {
		list := &corev1.PersistentVolumeList{}
		if err := i.Client().List(ctx, list); err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%d PersistentVolumes are left", len(list.Items))
		}
		return i.noAllocations(ctx)
	})
	out = i.helm("uninstall", release, "--wait", "--timeout=4m")
	t.Logf("helm uninstall: %s", out)
	if !strings.Contains(out, "wipefs --all /dev/loop") {
		t.Error("helm uninstall does not say what is left on the disk")
	}
	i.isGone("DaemonSet", client.ObjectKey{Namespace: namespace, Name: "berth-nodeagent"}, &appsv1.DaemonSet{})
	if err := i.Client().List(ctx, &v1alpha1.NodeDiskCapacityList{}); err != nil {
		t.Errorf("the CRDs are gone with the release: %v", err)
	}
	i.eventually("no pod is left", func(ctx context.Context) error {
		left := &corev1.PodList{}
		if err := i.Client().List(ctx, left, client.InNamespace(namespace)); err != nil || len(left.Items) > 0 {
			return fmt.Errorf("%d pods are left in the namespace (%w)", len(left.Items), err)
		}
		return nil
	})
}

// start starts a cluster of one node, with the images on it and the namespace made.
func start(t *testing.T) *installation {
	t.Helper()
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := helm.Build(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Name: "e2e-chart", Log: os.Stderr, Kubelets: true, StockScheduler: true,
		// As k0s has it: the values are those of k0s, too.
		Nodes: []cluster.NodeOptions{{KubeletDir: "/var/lib/k0s/kubelet", Disks: []cluster.DiskOptions{{Size: units.GiB}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	i := &installation{Cluster: c, t: t, programs: programs}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.Kubectl(context.Background(), "get", "pods,jobs,pv,ndc,events", "--all-namespaces", "--output=wide")
			t.Log(out)
			out, _ = c.Kubectl(context.Background(), "logs", "--namespace", namespace, "--prefix", "--tail=30", "--selector", "app.kubernetes.io/part-of=berth")
			t.Log(out)
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	i.importImages(root)
	i.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}}})
	i.writeValues()
	return i
}

// importImages makes Berth's images and imports them on the node: there is no registry.
func (i *installation) importImages(root string) {
	i.t.Helper()
	const folder = ".build/e2e-images"
	build := exec.CommandContext(i.t.Context(), "make", "--no-print-directory", "images",
		"IMAGES=--out "+folder+" --allow-unpinned --platforms linux/"+runtime.GOARCH)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		i.t.Fatalf("make images: %v: %s", err, out)
	}
	for _, image := range []string{"scheduler", "nodeagent"} {
		path := filepath.Join(root, folder, image+"-"+runtime.GOARCH+".tar")
		if _, err := i.Exec(i.t.Context(), i.Nodes()[0].Name, "ctr", "--namespace", "k8s.io", "images", "import", path); err != nil {
			i.t.Fatal(err)
		}
	}
}

// writeValues writes the values of the installation. In this cluster nothing routes the addresses of services, so pods
// get that of the API server.
func (i *installation) writeValues() {
	i.t.Helper()
	server, err := url.Parse(i.RESTConfig().Host)
	if err != nil {
		i.t.Fatal(err)
	}
	way := fmt.Sprintf(`[{name: KUBERNETES_SERVICE_HOST, value: %q}, {name: KUBERNETES_SERVICE_PORT, value: %q}]`, server.Hostname(), server.Port())
	disk := i.Nodes()[0].Disks[0].Path
	own := filepath.Join(i.Dir(), "values.yaml")
	i.values = []string{"--wait", "--timeout=4m", "--values=" + filepath.Join(i.programs.Chart(), "values", "k0s.yaml"), "--values=" + own}
	text := fmt.Sprintf(`
image: {pullPolicy: Never}
scheduler:
  serviceAccount: disk-scheduler
  extraEnv: %s
nodeagent:
  serviceAccount: disk-agent
  devices: [%q]
  extraEnv: %s
diskClasses:
  ssd: {adoption: Automatic, newDeviceGrace: 0s, devices: {paths: [%q]}, fsType: ext4}
storageClasses:
  berth-ssd: {class: ssd}
`, way, disk, way, disk)
	if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) helm(args ...string) string {
	i.t.Helper()
	start := time.Now()
	out, err := i.tryHelm(args...)
	if err != nil {
		i.t.Fatalf("helm %s: %v\n%s", args[0], err, out)
	}
	i.t.Logf("helm %s took %s", args[0], time.Since(start).Round(time.Second))
	return out
}

// tryHelm returns all that helm printed.
func (i *installation) tryHelm(args ...string) (string, error) {
	cmd := i.programs.Command(i.t.Context(), "helm", append(args, "--namespace="+namespace)...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+i.Kubeconfig())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (i *installation) create(object client.Object) {
	i.t.Helper()
	if err := i.Client().Create(i.t.Context(), object); err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) get(key client.ObjectKey, object client.Object) {
	i.t.Helper()
	if err := i.Client().Get(i.t.Context(), key, object); err != nil {
		i.t.Fatal(err)
	}
}

// remove deletes objects, and waits until they are gone.
func (i *installation) remove(objects ...client.Object) {
	i.t.Helper()
	for _, object := range objects {
		if err := i.Client().Delete(i.t.Context(), object, client.GracePeriodSeconds(1)); err != nil {
			i.t.Fatal(err)
		}
		i.isGone(object.GetName(), client.ObjectKeyFromObject(object), object)
	}
}

func (i *installation) isGone(what string, key client.ObjectKey, object client.Object) {
	i.t.Helper()
	i.eventually(what+" is gone", func(ctx context.Context) error {
		err := i.Client().Get(ctx, key, object)
		if err == nil {
			return errors.New("it is there")
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

func (i *installation) eventually(what string, condition func(context.Context) error) {
	i.t.Helper()
	if err := cluster.Eventually(i.t.Context(), patience, condition); err != nil {
		i.t.Fatalf("%s: %v", what, err)
	}
}

// inService returns nil when the disk takes volumes.
func (i *installation) inService(ctx context.Context) error {
	list := &v1alpha1.NodeDiskCapacityList{}
	if err := i.Client().List(ctx, list); err != nil {
		return err
	}
	for k := range list.Items {
		for _, disk := range list.Items[k].Status.Disks {
			if disk.State == v1alpha1.DiskReady && disk.Class == "ssd" {
				return nil
			}
		}
	}
	return errors.New("no disk is")
}

// noAllocations returns nil when no disk has a volume.
func (i *installation) noAllocations(ctx context.Context) error {
	list := &v1alpha1.NodeDiskCapacityList{}
	if err := i.Client().List(ctx, list); err != nil {
		return err
	}
	for k := range list.Items {
		for _, disk := range list.Items[k].Status.Disks {
			if n := len(disk.Allocations); n > 0 {
				return fmt.Errorf("%d volumes are on disk %s", n, disk.Device)
			}
		}
	}
	return nil
}

// running returns nil when the pod's container runs.
func (i *installation) running(pod *corev1.Pod) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := i.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if s := pod.Status.ContainerStatuses; len(s) == 0 || !s[0].Ready {
			return fmt.Errorf("pod %s is %s", pod.Name, pod.Status.Phase)
		}
		return nil
	}
}

func (i *installation) restarts(pod *corev1.Pod) int32 {
	i.t.Helper()
	i.get(client.ObjectKeyFromObject(pod), pod)
	return pod.Status.ContainerStatuses[0].RestartCount
}

// holds returns nil when the pod's volume has the mark.
func (i *installation) holds(pod *corev1.Pod) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := i.Kubectl(ctx, "exec", "--namespace", pod.Namespace, pod.Name, "--", "cat", "/data/mark")
		if err == nil && strings.TrimSpace(out) != mark {
			err = fmt.Errorf("the volume of pod %s has %q", pod.Name, out)
		}
		return err
	}
}

// volume is the only PersistentVolume.
func (i *installation) volume() *corev1.PersistentVolume {
	i.t.Helper()
	list := &corev1.PersistentVolumeList{}
	if err := i.Client().List(i.t.Context(), list); err != nil || len(list.Items) != 1 {
		i.t.Fatalf("there are %d PersistentVolumes: %v", len(list.Items), err)
	}
	return &list.Items[0]
}

func claim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: claimName},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("berth-ssd"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}
}

// pod is one that runs a command beside the volume of the claim.
func pod(name, command string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name},
		Spec: corev1.PodSpec{
			SchedulerName: "berth", TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers: []corev1.Container{{
				Name: "main", Image: cluster.BusyboxImage, Command: []string{"sh", "-c", command},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName},
			}}},
		},
	}
}
