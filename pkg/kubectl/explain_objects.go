package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
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
func (s *session) explainClaim(ctx context.Context, a *api, name string) (*document, error) {
	namespace, _, err := s.config.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, err
	}
	pvc, err := a.core.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading claim %s/%s: %w", namespace, name, err)
	}
	full := namespace + "/" + name
	value := &claimExplanation{Claim: full}
	d := &document{kind: kindClaimExplanation, name: full, value: value}
	if pvc.Spec.VolumeName != "" {
		value.Message = fmt.Sprintf("Claim %s is bound to PersistentVolume %s.", full, pvc.Spec.VolumeName)
		volume, err := s.explainVolume(ctx, a, pvc.Spec.VolumeName)
		if err != nil {
			return nil, err
		}
		value.Volume, _ = volume.value.(*volumeExplanation)
		d.text = value.Message + "\n" + volume.text
		return d, nil
	}
	says, user, err := a.whyNoVolume(ctx, pvc)
	if err != nil {
		return nil, err
	}
	value.Message, d.text = says, says+"\n"
	if user != "" {
		pod, err := s.explainPod(ctx, a, namespace, user)
		if err != nil {
			return nil, err
		}
		value.Pod, _ = pod.value.(*podExplanation)
		d.text += "\n" + pod.text
	}
	return d, nil
}

// whyNoVolume says why a claim has no volume. If a pod waits for it, user is its name.
func (a *api) whyNoVolume(ctx context.Context, pvc *corev1.PersistentVolumeClaim) (says, user string, err error) {
	full := pvc.Namespace + "/" + pvc.Name
	class, err := a.core.StorageV1().StorageClasses().Get(ctx, claim.ClassName(pvc), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("Claim %s has no volume: there is no StorageClass %q.", full, claim.ClassName(pvc)), "", nil
	case err != nil:
		return "", "", fmt.Errorf("reading StorageClass %s: %w", claim.ClassName(pvc), err)
	case class.Provisioner != diskv1alpha1.DriverName:
		return fmt.Sprintf("Claim %s has no volume. It is not Berth's: StorageClass %s is of %s.", full, class.Name, class.Provisioner), "", nil
	}
	if _, err := claim.Request(pvc, class); err != nil {
		return fmt.Sprintf("Claim %s can have no volume of Berth: %v.", full, err), "", nil
	}
	pods, err := a.pods(ctx, pvc.Namespace, fields.Everything())
	if err != nil {
		return "", "", err
	}
	for i := range pods {
		if usesClaim(&pods[i], pvc.Name) && pods[i].Spec.NodeName == "" {
			return fmt.Sprintf("Claim %s has no volume yet: it gets one with its pod %s.", full, pods[i].Name), pods[i].Name, nil
		}
	}
	return fmt.Sprintf("Claim %s has no volume yet: it gets one when a pod that uses it is placed, and no such pod waits.", full), "", nil
}

func usesClaim(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name || v.Ephemeral != nil && pod.Name+"-"+v.Name == name
	})
}

// explainVolume says where a PersistentVolume is.
func (s *session) explainVolume(ctx context.Context, a *api, name string) (*document, error) {
	pv, err := a.core.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading PersistentVolume %s: %w", name, err)
	}
	value := &volumeExplanation{PersistentVolume: name}
	d := &document{kind: kindVolumeExplanation, name: name, value: value}
	says := func(format string, args ...any) (*document, error) {
		value.Message = fmt.Sprintf(format, args...)
		d.text = value.Message + "\n" + d.text
		return d, nil
	}
	if !claim.IsOurs(pv) {
		return says("PersistentVolume %s is not Berth's.", name)
	}
	v, err := claim.ReadVolume(pv)
	if err != nil {
		return says("PersistentVolume %s reserves nothing: %v.", name, err)
	}
	value.Phase, value.Size, value.Class, value.Node, value.Claim = string(pv.Status.Phase), v.Size, v.Class, v.Node, claim.Owner(pv)
	nodes, err := a.capacities(ctx)
	if err != nil {
		return nil, err
	}
	d.text = fmt.Sprintf("  Its node does not publish it: the volume was not made yet, or its disk or its agent is missing. See kubectl berth explain node %s\n", v.Node)
	if on, on2 := partitionOn(nodes, v.Partition); on2 != nil {
		value.On = on2
		d.text = fmt.Sprintf("  %s at %s, %s\n", on.Path(), size(on2.Start), joined(size(on2.Length), strings.ToLower(on2.State), noteOn(on2, s.now())))
		if on.Message != "" {
			d.text += fmt.Sprintf("  the disk is %s: %s\n", on.State, on.Message)
		}
	}
	forClaim := ""
	if value.Claim != "" {
		forClaim = " for claim " + value.Claim
	}
	return says("PersistentVolume %s is %s, %s of %s on %s%s.", name, pv.Status.Phase, size(v.Size), v.Class, v.Node, forClaim)
}

// partitionOn is the volume of a partition, and its disk; nil if no node publishes it.
func partitionOn(nodes []diskv1alpha1.NodeDiskCapacity, partition string) (*inventory.Disk, *inventory.Volume) {
	for i := range nodes {
		disks := inventory.Disks(&nodes[i], inventory.Context{Withheld: withheldOn(&nodes[i])})
		for j := range disks {
			for k := range disks[j].Volumes {
				if disks[j].Volumes[k].Partition == partition {
					return &disks[j], &disks[j].Volumes[k]
				}
			}
		}
	}
	return nil, nil
}

// explainDisk says whether a disk takes volumes.
func (s *session) explainDisk(ctx context.Context, a *api, path string) (*document, error) {
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	node, device := splitPath(path)
	if device == "" {
		return nil, fmt.Errorf("name the disk as NODE/DEVICE; the disks of the node are listed by kubectl berth get disks --node %s", node)
	}
	ndc, about, err := a.node(ctx, node)
	if err != nil {
		return nil, err
	}
	disks, err := disksNamed(inventory.Disks(ndc, about), node, device)
	if err != nil {
		for _, d := range inventory.Devices(ndc) {
			if d.Name == device {
				return explainDevice(&d), nil
			}
		}
		return nil, err
	}
	d := &disks[0]
	value := diskExplanation{Takes: d.InService() && d.Free > 0, Disk: d}
	switch {
	case value.Takes:
		value.Message = fmt.Sprintf("Disk %s takes volumes of class %s: up to %s in one piece, %s in all.", d.Path(), d.Class, size(d.Largest), size(d.Free))
	case d.InService():
		value.Message = fmt.Sprintf("Disk %s of class %s is full.", d.Path(), d.Class)
	case d.Class == "":
		value.Message = fmt.Sprintf("Disk %s takes no volumes: no DiskClass selects it. Its volumes are served.", d.Path())
	default:
		value.Message = fmt.Sprintf("Disk %s takes no volumes, it is %s: %s.", d.Path(), d.State, d.Message)
	}
	text := value.Message + fmt.Sprintf("\nIt is disk %s, and holds %s.\n\n", d.ID, plural(d.VolumeCount(), "volume")) + nodeMap(to, ndc, disks, about, s.now())
	return &document{kind: kindDiskExplanation, name: d.Path(), value: value, text: text}, nil
}

// explainDevice says why a device is no disk.
func explainDevice(d *inventory.Device) *document {
	value := diskExplanation{Message: fmt.Sprintf("Device %s is no disk of Berth: it is %s.", d.Path(), d.State), Device: &d.Device}
	var b strings.Builder
	b.WriteString(value.Message + "\n")
	for _, reason := range d.Reasons {
		fmt.Fprintf(&b, "  %s\n", reason)
	}
	fmt.Fprintf(&b, "%s\n", joined(d.Model, size(d.Size), string(d.Transport), d.Identity()))
	return &document{kind: kindDiskExplanation, name: d.Path(), value: value, text: b.String()}
}

// explainNode says whether volumes can come to a node.
func (s *session) explainNode(ctx context.Context, a *api, name string) (*document, error) {
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	node, err := a.core.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading Node %s: %w", name, err)
	}
	if err != nil {
		node = nil
	}
	csiNode, err := a.core.StorageV1().CSINodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading CSINode %s: %w", name, err)
	}
	ndc, about, err := a.node(ctx, name)
	if err != nil && node == nil {
		return nil, fmt.Errorf("there is neither a Node nor a NodeDiskCapacity %s", name)
	}
	checks := nodeChecks(node, isRegistered(csiNode), ndc, err)
	value := nodeExplanation{Node: name, Takes: !slices.ContainsFunc(checks, func(c check) bool { return c.mark == terminal.MarkBad })}
	var b strings.Builder
	if value.Takes {
		fmt.Fprintf(&b, "Node %s takes volumes.\n", name)
	} else {
		fmt.Fprintf(&b, "Node %s takes no volumes.\n", name)
	}
	for _, c := range checks {
		fmt.Fprintf(&b, " %s %s\n", to.Mark(c.mark), c.says)
		value.Checks = append(value.Checks, checkItem{severities[c.mark], c.says})
	}
	if ndc != nil {
		value.Disks = inventory.Disks(ndc, about)
		b.WriteString("\n" + nodeMap(to, ndc, value.Disks, about, s.now()))
	}
	return &document{kind: kindNodeExplanation, name: name, value: value, text: b.String()}, nil
}

// isRegistered reports whether the driver is registered with the kubelet of the node.
func isRegistered(node *storagev1.CSINode) bool {
	return slices.ContainsFunc(node.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == diskv1alpha1.DriverName })
}

// check is one thing that was looked at.
type check struct {
	mark terminal.Mark
	says string
}

// noDiskTakes is said of a node where no disk takes volumes.
const noDiskTakes = "no disk takes volumes"

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
	add(inService, terminal.MarkBad, "at least one disk takes volumes", noDiskTakes)
	return checks
}

func messageOf(c *metav1.Condition) string {
	if c == nil {
		return "the agent has not said"
	}
	return c.Message
}
