package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
)

// tenant is a namespace of one test. At the end all its volumes are wiped and free.
type tenant struct {
	t         *testing.T
	cluster   *cluster.Cluster
	client    client.Client
	namespace string
}

// newTenant makes the namespace, with labels of the form key or key=value.
func newTenant(t *testing.T, c *cluster.Cluster, labels ...string) *tenant {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Labels: map[string]string{}}}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		namespace.Labels[key] = value
	}
	if err := c.Client().Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	e := &tenant{t: t, cluster: c, client: c.Client(), namespace: namespace.Name}
	t.Cleanup(e.leave)
	e.eventually("the service account is there", func(ctx context.Context) error {
		return e.client.Get(ctx, client.ObjectKey{Namespace: e.namespace, Name: "default"}, &corev1.ServiceAccount{})
	})
	return e
}

// leave deletes all pods and waits until their space is free.
func (e *tenant) leave() {
	ctx := context.Background()
	if e.t.Failed() {
		out, _ := e.cluster.Kubectl(ctx, "get", "pods,persistentvolumeclaims,persistentvolumes,events", "--namespace", e.namespace, "-o", "wide")
		e.t.Logf("%s\nlogs are in %s", out, e.cluster.LogDir())
	}
	// Controllers that would make new pods are deleted first.
	for _, kind := range []client.Object{&appsv1.StatefulSet{}, &corev1.Pod{}, &corev1.PersistentVolumeClaim{}} {
		err := e.client.DeleteAllOf(ctx, kind, client.InNamespace(e.namespace), client.GracePeriodSeconds(1))
		if err != nil {
			e.t.Error(err)
		}
	}
	err := cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		pods := &corev1.PodList{}
		if err := e.client.List(ctx, pods, client.InNamespace(e.namespace)); err != nil {
			return err
		}
		if len(pods.Items) > 0 {
			return fmt.Errorf("%d pods are left", len(pods.Items))
		}
		return errors.Join(e.noVolumes(ctx), e.allFree(ctx))
	})
	if err != nil {
		e.t.Errorf("after the test: %v", err)
	}
}

// allFree returns nil when no volume of the tenant is left, and everything that is published is sound.
func (e *tenant) allFree(ctx context.Context) error {
	list := &v1alpha1.NodeDiskCapacityList{}
	if err := e.client.List(ctx, list); err != nil {
		return err
	}
	for _, ndc := range list.Items {
		if err := sound(&ndc.Status); err != nil {
			return fmt.Errorf("node %s: %w", ndc.Name, err)
		}
		for _, d := range ndc.Status.Disks {
			for _, a := range d.Allocations {
				if a.Owner == "" || strings.HasPrefix(a.Owner, e.namespace+"/") {
					return fmt.Errorf("node %s has a volume of %q in phase %s", ndc.Name, a.Owner, a.Phase)
				}
			}
		}
	}
	return nil
}

// sound returns an error unless the space of each disk in service adds up.
func sound(s *v1alpha1.NodeDiskCapacityStatus) error {
	for i := range s.Disks {
		if s.Disks[i].State != v1alpha1.DiskReady {
			continue
		}
		if err := objects.CheckSpace(&s.Disks[i]); err != nil {
			return err
		}
	}
	return nil
}

func (e *tenant) eventually(what string, condition func(context.Context) error) {
	e.t.Helper()
	if err := cluster.Eventually(e.t.Context(), patience, condition); err != nil {
		e.t.Fatalf("%s: %v", what, err)
	}
}

// volume is an inline volume. fsType may be empty.
func volume(name, class, size, fsType string) corev1.Volume {
	v := objects.InlineVolume(name, class, size)
	if fsType != "" {
		v.CSI.FSType = &fsType
	}
	return v
}

// script records each start on the first volume, and ends at once on SIGTERM.
const script = `trap 'exit 1' TERM; [ -d /data ] && echo started >> /data/starts; sleep infinity & wait`

// podOf is a pod of profile berth with each volume mounted on /<its name>.
func (e *tenant) podOf(name string, volumes ...corev1.Volume) *corev1.Pod {
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: name},
		Spec: corev1.PodSpec{
			SchedulerName: "berth", TerminationGracePeriodSeconds: &grace, Volumes: volumes,
			Containers: []corev1.Container{{Name: "main", Image: cluster.BusyboxImage, Command: []string{"sh", "-c", script}}},
		},
	}
	for _, v := range volumes {
		main := &pod.Spec.Containers[0]
		main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return pod
}

func (e *tenant) create(pods ...*corev1.Pod) {
	e.t.Helper()
	for _, pod := range pods {
		if err := e.client.Create(e.t.Context(), pod); err != nil {
			e.t.Fatalf("create pod %s: %v", pod.Name, err)
		}
	}
}

// delete deletes the pods. It does not wait for their end.
func (e *tenant) delete(pods ...*corev1.Pod) {
	e.t.Helper()
	for _, pod := range pods {
		if err := e.client.Delete(e.t.Context(), pod); err != nil {
			e.t.Fatalf("delete pod %s: %v", pod.Name, err)
		}
	}
}

// isReady returns nil when the pod's container runs. Otherwise the error says what keeps it from running.
func (e *tenant) isReady(ctx context.Context, pod *corev1.Pod) error {
	if err := e.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
		return err
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod %s on %q is %s: %v", pod.Name, pod.Spec.NodeName, pod.Status.Phase, pod.Status.Conditions)
}

// ready waits until all of the pods run, and refreshes them.
func (e *tenant) ready(pods ...*corev1.Pod) {
	e.t.Helper()
	e.eventually("the pods run", func(ctx context.Context) error {
		for _, pod := range pods {
			if err := e.isReady(ctx, pod); err != nil {
				return err
			}
		}
		return nil
	})
}

// gone waits until the pods do not exist any more.
func (e *tenant) gone(pods ...*corev1.Pod) {
	e.t.Helper()
	e.eventually("the pods are gone", func(ctx context.Context) error {
		for _, pod := range pods {
			err := e.client.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Pod{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("pod %s is still there (%w)", pod.Name, err)
			}
		}
		return nil
	})
}

// waits returns why the pod fits on no node, once the scheduler has reported it.
func (e *tenant) waits(pod *corev1.Pod) string {
	e.t.Helper()
	var message string
	e.eventually("pod "+pod.Name+" is unschedulable", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				message = c.Message
				return nil
			}
		}
		return fmt.Errorf("it is %s on %q", pod.Status.Phase, pod.Spec.NodeName)
	})
	return message
}

// event waits for an event about the object whose message has all of the words.
func (e *tenant) event(object client.Object, reason string, words ...string) {
	e.t.Helper()
	namespace := e.namespace
	if object.GetNamespace() == "" {
		namespace = metav1.NamespaceDefault // of the whole cluster
	}
	e.eventually("event "+reason+" of "+object.GetName(), func(ctx context.Context) error {
		events := &corev1.EventList{}
		if err := e.client.List(ctx, events, client.InNamespace(namespace)); err != nil {
			return err
		}
		err := errors.New("there is none")
		for _, event := range events.Items {
			if event.InvolvedObject.UID != object.GetUID() || event.Reason != reason {
				continue
			}
			if missing := lacks(event.Message, words); missing == "" {
				return nil
			}
			err = fmt.Errorf("it says %q, want %q", event.Message, words)
		}
		return err
	})
}

// lacks returns the first of the words that is not in the text.
func lacks(text string, words []string) string {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return w
		}
	}
	return ""
}

// exec runs a shell command in the pod and returns its output.
func (e *tenant) exec(pod *corev1.Pod, command string) string {
	e.t.Helper()
	out, err := e.cluster.Kubectl(e.t.Context(), "exec", "--namespace", e.namespace, pod.Name, "--container", "main", "--", "sh", "-c", command)
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// write writes a file onto the pod's volume that is full of the canary, and syncs it to the disk.
func (e *tenant) write(pod *corev1.Pod, canary string) {
	e.t.Helper()
	e.exec(pod, "yes "+canary+" | head -c 4000000 > /data/file && sync /data/file")
}

// holds fails the test unless the volume contains what write wrote.
func (e *tenant) holds(pod *corev1.Pod, canary string) {
	e.t.Helper()
	if out := e.exec(pod, "wc -c < /data/file; head -n 1 /data/file"); out != "4000000\n"+canary {
		e.t.Errorf("the volume of %s does not hold %q any more: %q", pod.Name, canary, out)
	}
}

// restart ends the pod's container from within and waits until the kubelet has started it again.
func (e *tenant) restart(pod *corev1.Pod) {
	e.t.Helper()
	before := restarts(pod)
	// The command may be killed together with the container. The result is checked below.
	_, _ = e.cluster.Kubectl(e.t.Context(), "exec", "--namespace", e.namespace, pod.Name, "--container", "main", "--", "kill", "1")
	e.eventually("the container is restarted", func(ctx context.Context) error {
		if err := e.isReady(ctx, pod); err != nil {
			return err
		}
		if restarts(pod) != before+1 {
			return fmt.Errorf("%d restarts", restarts(pod))
		}
		return nil
	})
}

func restarts(pod *corev1.Pod) int32 {
	var n int32
	for _, s := range pod.Status.ContainerStatuses {
		n += s.RestartCount
	}
	return n
}

// canary is text that is on no disk yet.
func canary(e *tenant) string { return fmt.Sprintf("canary-%s-%d", e.namespace, time.Now().UnixNano()) }

func readTrimmed(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
