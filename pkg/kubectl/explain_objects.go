package kubectl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// nodeObjects are all Nodes.
func (a *api) nodeObjects(ctx context.Context) ([]corev1.Node, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Node, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().Nodes().List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("Nodes", err)
		}
		return list.Items, list, nil
	})
}

// volumes are all PersistentVolumes.
func (a *api) volumes(ctx context.Context) ([]corev1.PersistentVolume, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.PersistentVolume, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().PersistentVolumes().List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("PersistentVolumes", err)
		}
		return list.Items, list, nil
	})
}

// explainClaim says where the volume of a claim is, or why it has none.
func (s *session) explainClaim(ctx context.Context, a *api, out io.Writer, name string) error {
	namespace, _, err := s.config.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return err
	}
	pvc, err := a.core.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading claim %s/%s: %w", namespace, name, err)
	}
	full := namespace + "/" + name
	if pvc.Spec.VolumeName != "" {
		fmt.Fprintf(out, "Claim %s is bound to PersistentVolume %s.\n", full, pvc.Spec.VolumeName)
		return s.explainVolume(ctx, a, out, pvc.Spec.VolumeName)
	}
	class, err := a.core.StorageV1().StorageClasses().Get(ctx, claim.ClassName(pvc), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		fmt.Fprintf(out, "Claim %s has no volume: there is no StorageClass %q.\n", full, claim.ClassName(pvc))
		return nil
	case err != nil:
		return fmt.Errorf("reading StorageClass %s: %w", claim.ClassName(pvc), err)
	case class.Provisioner != diskv1alpha1.DriverName:
		fmt.Fprintf(out, "Claim %s has no volume. It is not Berth's: StorageClass %s is of %s.\n", full, class.Name, class.Provisioner)
		return nil
	}
	if _, err := claim.Request(pvc, class); err != nil {
		fmt.Fprintf(out, "Claim %s can have no volume of Berth: %v.\n", full, err)
		return nil
	}
	pods, err := a.pods(ctx, namespace, fields.Everything())
	if err != nil {
		return err
	}
	var users []string
	for i := range pods {
		if usesClaim(&pods[i], name) && pods[i].Spec.NodeName == "" {
			users = append(users, pods[i].Name)
		}
	}
	if len(users) == 0 {
		fmt.Fprintf(out, "Claim %s has no volume yet: it gets one when a pod that uses it is placed, and no such pod waits.\n", full)
		return nil
	}
	fmt.Fprintf(out, "Claim %s has no volume yet: it gets one with its pod %s.\n\n", full, users[0])
	return s.explainPod(ctx, a, namespace, users[0])
}

func usesClaim(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name || v.Ephemeral != nil && pod.Name+"-"+v.Name == name
	})
}

// explainVolume says where a PersistentVolume is.
func (s *session) explainVolume(ctx context.Context, a *api, out io.Writer, name string) error {
	pv, err := a.core.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading PersistentVolume %s: %w", name, err)
	}
	if !claim.IsOurs(pv) {
		fmt.Fprintf(out, "PersistentVolume %s is not Berth's.\n", name)
		return nil
	}
	v, err := claim.ReadVolume(pv)
	if err != nil {
		fmt.Fprintf(out, "PersistentVolume %s reserves nothing: %v.\n", name, err)
		return nil
	}
	fmt.Fprintf(out, "PersistentVolume %s is %s, %s of %s on %s", name, pv.Status.Phase, size(v.Size), v.Class, v.Node)
	if owner := claim.Owner(pv); owner != "" {
		fmt.Fprintf(out, " for claim %s", owner)
	}
	fmt.Fprintln(out, ".")
	nodes, err := a.capacities(ctx)
	if err != nil {
		return err
	}
	for i := range nodes {
		for _, d := range inventory.Disks(&nodes[i], inventory.Context{Withheld: withheldOn(&nodes[i])}) {
			for j := range d.Volumes {
				if on := &d.Volumes[j]; on.Partition == v.Partition {
					fmt.Fprintf(out, "  %s at %s, %s\n", d.Path(), size(on.Start), joined(size(on.Length), strings.ToLower(on.State), noteOn(on, s.now())))
					if d.Message != "" {
						fmt.Fprintf(out, "  the disk is %s: %s\n", d.State, d.Message)
					}
					return nil
				}
			}
		}
	}
	fmt.Fprintf(out, "  Its node does not publish it: the volume was not made yet, or its disk or its agent is missing. See kubectl berth explain node %s\n", v.Node)
	return nil
}

// explainDisk says whether a disk takes volumes.
func (s *session) explainDisk(ctx context.Context, a *api, out io.Writer, path string) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	node, device := splitPath(path)
	if device == "" {
		return fmt.Errorf("name the disk as NODE/DEVICE; the disks of the node are listed by kubectl berth get disks --node %s", node)
	}
	ndc, about, err := a.node(ctx, node)
	if err != nil {
		return err
	}
	disks, err := disksNamed(inventory.Disks(ndc, about), node, device)
	if err != nil {
		for _, d := range inventory.Devices(ndc) {
			if d.Name == device {
				return explainDevice(out, &d)
			}
		}
		return err
	}
	d := &disks[0]
	switch {
	case d.InService() && d.Free > 0:
		fmt.Fprintf(out, "Disk %s takes volumes of class %s: up to %s in one piece, %s in all.\n", d.Path(), d.Class, size(d.Largest), size(d.Free))
	case d.InService():
		fmt.Fprintf(out, "Disk %s of class %s is full.\n", d.Path(), d.Class)
	case d.Class == "":
		fmt.Fprintf(out, "Disk %s takes no volumes: no DiskClass selects it. Its volumes are served.\n", d.Path())
	default:
		fmt.Fprintf(out, "Disk %s takes no volumes, it is %s: %s.\n", d.Path(), d.State, d.Message)
	}
	fmt.Fprintf(out, "It is disk %s, and holds %s.\n\n", d.ID, plural(len(d.Volumes), "volume"))
	_, err = io.WriteString(out, nodeMap(to, ndc, disks, about, s.now()))
	return err
}

// explainDevice says why a device is no disk.
func explainDevice(out io.Writer, d *inventory.Device) error {
	fmt.Fprintf(out, "Device %s is no disk of Berth: it is %s.\n", d.Path(), d.State)
	for _, reason := range d.Reasons {
		fmt.Fprintf(out, "  %s\n", reason)
	}
	_, err := fmt.Fprintf(out, "%s\n", joined(d.Model, size(d.Size), string(d.Transport), d.Identity()))
	return err
}

// explainNode says whether volumes can come to a node.
func (s *session) explainNode(ctx context.Context, a *api, out io.Writer, name string) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	node, err := a.core.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading Node %s: %w", name, err)
	}
	if err != nil {
		node = nil
	}
	csiNode, err := a.core.StorageV1().CSINodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading CSINode %s: %w", name, err)
	}
	registered := false
	for i := range csiNode.Spec.Drivers {
		registered = registered || csiNode.Spec.Drivers[i].Name == diskv1alpha1.DriverName
	}
	ndc, about, err := a.node(ctx, name)
	if err != nil && node == nil {
		return fmt.Errorf("there is neither a Node nor a NodeDiskCapacity %s", name)
	}
	checks := nodeChecks(node, registered, ndc, err)
	bad := slices.ContainsFunc(checks, func(c check) bool { return c.mark == terminal.MarkBad })
	if bad {
		fmt.Fprintf(out, "Node %s takes no volumes.\n", name)
	} else {
		fmt.Fprintf(out, "Node %s takes volumes.\n", name)
	}
	for _, c := range checks {
		fmt.Fprintf(out, " %s %s\n", to.Mark(c.mark), c.says)
	}
	if ndc == nil {
		return nil
	}
	_, err = io.WriteString(out, "\n"+nodeMap(to, ndc, inventory.Disks(ndc, about), about, s.now()))
	return err
}

// check is one thing that was looked at.
type check struct {
	mark terminal.Mark
	says string
}

// nodeChecks are the conditions for volumes on a node, in the order in which they must hold.
func nodeChecks(node *corev1.Node, registered bool, ndc *diskv1alpha1.NodeDiskCapacity, unpublished error) []check {
	var checks []check
	add := func(good bool, mark terminal.Mark, says, says2 string) {
		if good {
			checks = append(checks, check{terminal.MarkDone, says})
			return
		}
		checks = append(checks, check{mark, says2})
	}
	add(node != nil, terminal.MarkBad, "its Node exists", "there is no Node of this name: its disks are not used")
	if node != nil {
		add(node.Labels[diskv1alpha1.LabelNode] != "", terminal.MarkBad, "it has the label "+diskv1alpha1.LabelNode,
			"it lacks the label "+diskv1alpha1.LabelNode+", which the kubelet sets when the agent registers: no claim can be bound there")
		for _, t := range node.Spec.Taints {
			checks = append(checks, check{terminal.MarkWarning, "it has the taint " + t.ToString() + ": only pods that tolerate it come here"})
		}
		if node.Spec.Unschedulable {
			checks = append(checks, check{terminal.MarkBad, "it is cordoned: kubectl uncordon " + node.Name})
		}
	}
	add(registered, terminal.MarkBad, "its agent is registered with the kubelet", "its agent is not registered with the kubelet: does the pod of the DaemonSet berth-nodeagent run there, with the right --kubelet-dir?")
	add(unpublished == nil, terminal.MarkBad, "its disks are published", "its disks are not published")
	if unpublished != nil || ndc == nil {
		return checks
	}
	ready := conditionOf(ndc, diskv1alpha1.ConditionReady)
	add(ready != nil && ready.Status == metav1.ConditionTrue, terminal.MarkWarning, "all its disks are in service", "not all is in service: "+messageOf(ready))
	inService := slices.ContainsFunc(ndc.Status.Disks, func(d diskv1alpha1.Disk) bool { return d.State == diskv1alpha1.DiskReady && d.Class != "" })
	add(inService, terminal.MarkBad, "at least one disk takes volumes", "no disk takes volumes")
	return checks
}

func messageOf(c *metav1.Condition) string {
	if c == nil {
		return "the agent has not said"
	}
	return c.Message
}
