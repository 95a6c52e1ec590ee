// Package tour is what the demo shows: the shape of its cluster, and commands that are printed and run as printed.
// test/e2e/pages compares what they print with docs/start.md.
package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/units"
)

// patience is how long a step may take on a busy machine.
const patience = 2 * time.Minute

// nodes have room for eight of the samples' volumes of 1900 MiB: 2+1, 2+1 and 1+1.
var nodes = []cluster.NodeOptions{
	{Disks: []cluster.DiskOptions{{Size: 5120 * units.MiB, SectorSize: 512}, {Size: 3072 * units.MiB, SectorSize: 4096}}},
	{Disks: []cluster.DiskOptions{{Size: 4096 * units.MiB, SectorSize: 4096}, {Size: 2048 * units.MiB, SectorSize: 512}}},
	{Disks: []cluster.DiskOptions{{Size: 3072 * units.MiB, SectorSize: 512}, {Size: 2048 * units.MiB, SectorSize: 4096}}},
}

const room = 8

// Options are those of the cluster that Run expects.
func Options() cluster.Options {
	return cluster.Options{Kubelets: true, Nodes: nodes, Agents: true, Scheduler: true}
}

type demo struct {
	*cluster.Cluster
	out io.Writer
}

// Run shows Berth on a new cluster with those options, and leaves what it makes.
func Run(ctx context.Context, c *cluster.Cluster, out io.Writer) error {
	d := &demo{c, out}
	for _, step := range []func(context.Context) error{d.showNodes, d.showPod, d.showFull, d.showNext, d.showClaim} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) showNodes(ctx context.Context) error {
	d.say("A DiskClass says which disks are Berth's. The agents put them into service and publish their free space.")
	if err := d.kubectl(ctx, "apply", "-f", "config/samples/diskclass.yaml"); err != nil {
		return err
	}
	if err := d.eventually(ctx, d.disksReady); err != nil {
		return err
	}
	return d.kubectl(ctx, "get", "ndc")
}

func (d *demo) disksReady(ctx context.Context) error {
	capacities := &v1alpha1.NodeDiskCapacityList{}
	if err := d.Client().List(ctx, capacities); err != nil {
		return err
	}
	ready := 0
	for _, c := range capacities.Items {
		for _, disk := range c.Status.Disks {
			if disk.State == v1alpha1.DiskReady && disk.Class != "" {
				ready++
			}
		}
	}
	if ready < 2*len(nodes) {
		return fmt.Errorf("%d of %d disks are in service", ready, 2*len(nodes))
	}
	return nil
}

func (d *demo) showPod(ctx context.Context) error {
	d.say("A pod asks for 1900Mi of class ssd. It gets a partition where that leaves the least behind.")
	if err := d.kubectl(ctx, "apply", "-f", "config/samples/pod.yaml"); err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "scratch"}}
	err := d.eventually(ctx, func(ctx context.Context) error {
		if err := d.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		return running(pod)
	})
	if err != nil {
		return err
	}
	d.say("Inside the pod it is a file system of its own.")
	if err := d.kubectl(ctx, "exec", pod.Name, "--", "df", "-h", "/data"); err != nil {
		return err
	}
	mounts, err := d.Kubectl(ctx, "exec", pod.Name, "--", "grep", " /data ", "/proc/mounts")
	if err != nil {
		return err
	}
	device, _, _ := strings.Cut(mounts, " ")
	return d.showIdentity(ctx, pod, device)
}

// showIdentity shows that the pod, its node and the API have the same partition.
func (d *demo) showIdentity(ctx context.Context, pod *corev1.Pod, device string) error {
	d.say("That device is a GPT partition. The pod's container may not open it; a privileged debug container in the same pod shows what it is.")
	const look = "look"
	err := d.kubectl(ctx, "debug", pod.Name, "--quiet", "--image=busybox:stable", "--profile=sysadmin", "--container="+look, "--", "blkid", device)
	if err != nil {
		return err
	}
	var seen string
	err = d.eventually(ctx, func(ctx context.Context) error {
		if seen, err = d.Kubectl(ctx, "logs", pod.Name, "--container="+look); err != nil {
			return err
		}
		if !strings.Contains(seen, "PARTUUID=") {
			return fmt.Errorf("the debug container has printed %q", seen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.kubectl(ctx, "logs", pod.Name, "--container="+look); err != nil {
		return err
	}
	node := pod.Spec.NodeName
	d.say("Outside, on " + node + ", it has the same PARTUUID,")
	if err := d.onNode(ctx, node, "blkid", device); err != nil {
		return err
	}
	d.say("and it is the one that the NodeDiskCapacity names, with the pod and the exact bytes that the scheduler reserved.")
	if err := d.kubectl(ctx, "get", "ndc", node, "-o", "jsonpath={..allocations}"); err != nil {
		return err
	}
	return d.kubectl(ctx, "get", "pod", pod.Name, "-o", `jsonpath={.metadata.annotations.disk\.berth\.dev/allocation}`)
}

func (d *demo) showFull(ctx context.Context) error {
	d.say("A Deployment wants nine more, and the disks have room for seven.")
	if err := d.kubectl(ctx, "apply", "-f", "config/samples/deployment.yaml"); err != nil {
		return err
	}
	if err := d.eventually(ctx, func(ctx context.Context) error { return d.pods(ctx, room, 2) }); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	d.say("Why the others wait:")
	if err := d.kubectl(ctx, "get", "pods", "--field-selector=status.phase=Pending", "-o",
		`jsonpath={range .items[*]}{..message}{"\n"}{end}`); err != nil {
		return err
	}
	return d.showFree(ctx)
}

// showFree shows the space when all pods that run have their volumes in it: the agents publish a second later.
func (d *demo) showFree(ctx context.Context) error {
	err := d.eventually(ctx, func(ctx context.Context) error {
		capacities := &v1alpha1.NodeDiskCapacityList{}
		if err := d.Client().List(ctx, capacities); err != nil {
			return err
		}
		volumes := int32(0)
		for _, c := range capacities.Items {
			volumes += c.Status.Summary.Volumes
		}
		if volumes != room {
			return fmt.Errorf("%d volumes are published, want %d", volumes, room)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.kubectl(ctx, "get", "ndc")
}

func (d *demo) showNext(ctx context.Context) error {
	d.say("The first pod goes. Its partition is wiped, checked and given back, and a waiting replica moves in.")
	start := time.Now()
	if err := d.kubectl(ctx, "delete", "pod", "scratch"); err != nil {
		return err
	}
	if err := d.eventually(ctx, func(ctx context.Context) error { return d.pods(ctx, room, 1) }); err != nil {
		return err
	}
	d.say(fmt.Sprintf("%.1f s later:", time.Since(start).Seconds()))
	if err := d.kubectl(ctx, "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	return d.showFree(ctx)
}

func (d *demo) showClaim(ctx context.Context) error {
	d.say("A claim is placed with the pod that uses it, and keeps its data when the pod goes.")
	for _, file := range []string{"storageclass.yaml", "claim.yaml"} {
		if err := d.kubectl(ctx, "apply", "-f", "config/samples/"+file); err != nil {
			return err
		}
	}
	if err := d.eventually(ctx, func(ctx context.Context) error { return d.runs(ctx, "db") }); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "exec", "db", "--", "sh", "-c", "echo still here > /data/note"); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "get", "pvc,pv"); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "delete", "pod", "db"); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "apply", "-f", "config/samples/claim.yaml"); err != nil {
		return err
	}
	if err := d.eventually(ctx, func(ctx context.Context) error { return d.runs(ctx, "db") }); err != nil {
		return err
	}
	return d.kubectl(ctx, "exec", "db", "--", "cat", "/data/note")
}

// runs returns nil when the pod runs.
func (d *demo) runs(ctx context.Context, name string) error {
	pod := &corev1.Pod{}
	if err := d.Client().Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: name}, pod); err != nil {
		return err
	}
	return running(pod)
}

// pods returns nil when that many pods run and that many others are reported not to fit.
func (d *demo) pods(ctx context.Context, wantRunning, wantWaiting int) error {
	list := &corev1.PodList{}
	if err := d.Client().List(ctx, list, client.InNamespace(metav1.NamespaceDefault)); err != nil {
		return err
	}
	up, waiting := 0, 0
	why := errors.New("no other pods")
	for i := range list.Items {
		pod := &list.Items[i]
		err := running(pod)
		switch {
		case err == nil:
			up++
		case unschedulable(pod):
			waiting++
		default:
			why = err
		}
	}
	if up != wantRunning || waiting != wantWaiting || len(list.Items) != up+waiting {
		return fmt.Errorf("want %d pods running and %d waiting for space, have %d and %d: %w", wantRunning, wantWaiting, up, waiting, why)
	}
	return nil
}

// running returns nil when a pod's containers run. Otherwise the error says what keeps them from running.
func running(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
			return nil
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return fmt.Errorf("pod %s is %s: %s", pod.Name, pod.Status.Phase, c.Message)
		}
	}
	return fmt.Errorf("pod %s is %s", pod.Name, pod.Status.Phase)
}

func unschedulable(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
			return true
		}
	}
	return false
}

func (d *demo) eventually(ctx context.Context, condition func(context.Context) error) error {
	return cluster.Eventually(ctx, patience, condition)
}

func (d *demo) say(text string) { fmt.Fprintf(d.out, "\n%s\n", text) }

// kubectl prints a command, runs it, and prints its output.
func (d *demo) kubectl(ctx context.Context, args ...string) error {
	fmt.Fprintln(d.out, "$ kubectl "+quote(args))
	return d.print(d.Kubectl(ctx, args...))
}

// onNode is kubectl for a command on a node.
func (d *demo) onNode(ctx context.Context, node string, argv ...string) error {
	fmt.Fprintf(d.out, "%s# %s\n", node, quote(argv))
	return d.print(d.Exec(ctx, node, argv...))
}

func (d *demo) print(output string, err error) error {
	if err != nil {
		return err
	}
	if output = strings.TrimSpace(output); output != "" {
		fmt.Fprintln(d.out, "  "+strings.ReplaceAll(output, "\n", "\n  "))
	}
	return nil
}

// quote writes arguments for a shell.
func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; a == "" || strings.ContainsAny(a, " $'\"{}[]*?|&;<>()\\") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
