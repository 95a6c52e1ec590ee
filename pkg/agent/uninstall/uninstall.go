// Package uninstall is what `nodeagent uninstall-check` and `nodeagent uninstall-release` do before and after Berth is
// removed from a cluster. Only agents wipe volumes and take the finalizer off their PersistentVolumes. So Berth is
// removed when there are no volumes, or the volumes are kept and the finalizers go with the agents.
package uninstall

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
)

// ErrVolumes says that there are volumes.
var ErrVolumes = errors.New("there are volumes, and only Berth's agents wipe them: Berth is not removed")

// agentSelector selects the agents' pods.
const agentSelector = "app.kubernetes.io/name=berth-nodeagent"

// Client reads what there is of Berth's in the whole cluster.
type Client struct {
	core, disk rest.Interface
}

// New returns a client.
func New(config *rest.Config) (*Client, error) {
	core, err := restClient(config, corev1.SchemeGroupVersion, "/api")
	if err != nil {
		return nil, err
	}
	disk, err := restClient(config, diskv1alpha1.SchemeGroupVersion, "/apis")
	if err != nil {
		return nil, err
	}
	return &Client{core, disk}, nil
}

func restClient(config *rest.Config, version schema.GroupVersion, path string) (*rest.RESTClient, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &version, path
	config.NegotiatedSerializer = serializer.NewCodecFactory(client.Scheme).WithoutConversion()
	c, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("cannot make a client for %s: %w", version, err)
	}
	return c, nil
}

// volume is a volume of Berth, on a disk or in a PersistentVolume.
type volume struct {
	node, name, owner string
	size              int64
	// state says what it waits for.
	state string
}

// Check prints the volumes and returns ErrVolumes if there are some.
func (c *Client) Check(ctx context.Context, out io.Writer) error {
	persistent, err := c.persistentVolumes(ctx)
	if err != nil {
		return err
	}
	capacities, err := c.capacities(ctx)
	if err != nil {
		return err
	}
	found := listed(persistent, capacities)
	if len(found) == 0 {
		fmt.Fprintln(out, "Berth has no volumes.")
		printDisks(out, capacities)
		return nil
	}
	const most = 50
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tVOLUME\tSIZE\tOWNER\tSTATE")
	for _, v := range found[:min(most, len(found))] {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", orDash(v.node), v.name, resource.NewQuantity(v.size, resource.BinarySI), orDash(v.owner), v.state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(found) > most {
		fmt.Fprintf(out, "... and %d more\n", len(found)-most)
	}
	fmt.Fprintln(out, "\nDelete these pods and claims first, release retained PersistentVolumes, and wait until the agents have wiped the volumes.\n"+
		"Then run helm uninstall again. To keep all volumes on the disks instead, see docs/operate/uninstall.md.")
	return fmt.Errorf("%w (%d volumes)", ErrVolumes, len(found))
}

// listed are the volumes of both lists, each once, by node and name.
func listed(persistent []corev1.PersistentVolume, capacities []diskv1alpha1.NodeDiskCapacity) []volume {
	var found []volume
	published := map[string]bool{}
	for i := range capacities {
		for _, disk := range capacities[i].Status.Disks {
			for _, a := range disk.Allocations {
				published[a.Volume] = true
				found = append(found, volume{capacities[i].Name, cmp.Or(a.Volume, a.Partition), a.Owner, a.Length, state(&a)})
			}
		}
	}
	for i := range persistent {
		pv := &persistent[i]
		if published[pv.Spec.CSI.VolumeHandle] {
			continue
		}
		size := pv.Spec.Capacity[corev1.ResourceStorage]
		v := volume{pv.Labels[diskv1alpha1.LabelNode], pv.Name, "", size.Value(), "PersistentVolume is " + string(pv.Status.Phase)}
		if claim := pv.Spec.ClaimRef; claim != nil {
			v.owner = claim.Namespace + "/" + claim.Name
		}
		found = append(found, v)
	}
	slices.SortFunc(found, func(a, b volume) int {
		return cmp.Or(strings.Compare(a.node, b.node), strings.Compare(a.name, b.name))
	})
	return found
}

// Release waits until no agent runs in the namespace, and takes Berth's finalizer off all PersistentVolumes. Without
// agents no program would do that. It prints what stays on the disks. An agent that is installed later finds the
// volumes.
func (c *Client) Release(ctx context.Context, namespace string, out io.Writer) error {
	if err := c.waitForAgents(ctx, namespace); err != nil {
		return err
	}
	persistent, err := c.persistentVolumes(ctx)
	if err != nil {
		return err
	}
	capacities, err := c.capacities(ctx)
	if err != nil {
		return err
	}
	released := 0
	for i := range persistent {
		pv := &persistent[i]
		if !slices.Contains(pv.Finalizers, diskv1alpha1.FinalizerVolume) {
			continue
		}
		if err := c.release(ctx, pv); err != nil {
			return err
		}
		released++
	}
	found := listed(persistent, capacities)
	fmt.Fprintf(out, "Berth is removed, and %d volumes stay on the disks. The finalizer %s is off %d PersistentVolumes.\n"+
		"Keep these objects: an installation of Berth on the same nodes serves their volumes again.\n", len(found), diskv1alpha1.FinalizerVolume, released)
	printDisks(out, capacities)
	return nil
}

// release takes the finalizer off a PersistentVolume, unless it has changed since it was read.
func (c *Client) release(ctx context.Context, pv *corev1.PersistentVolume) error {
	others := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == diskv1alpha1.FinalizerVolume })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": others, "resourceVersion": pv.ResourceVersion}})
	if err != nil {
		return err
	}
	err = c.core.Patch(types.MergePatchType).Resource("persistentvolumes").Name(pv.Name).Body(patch).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the finalizer off PersistentVolume %s: %w", pv.Name, err)
	}
	return nil
}

// waitForAgents returns when no pod of an agent is left. One that runs may be wiping a volume that its finalizer holds.
func (c *Client) waitForAgents(ctx context.Context, namespace string) error {
	const patience = 3 * time.Minute
	left := 0
	err := wait.PollUntilContextTimeout(ctx, time.Second, patience, true, func(ctx context.Context) (bool, error) {
		pods := &corev1.PodList{}
		err := c.core.Get().Resource("pods").Namespace(namespace).Param("labelSelector", agentSelector).Do(ctx).Into(pods)
		if err != nil {
			return false, fmt.Errorf("list the agents' pods: %w", err)
		}
		left = len(pods.Items)
		return left == 0, nil
	})
	if wait.Interrupted(err) {
		return fmt.Errorf("%d agents have not ended within %s: a disk may hang (docs/operate/agent.md)", left, patience)
	}
	return err
}

// persistentVolumes are those of Berth's driver.
func (c *Client) persistentVolumes(ctx context.Context) ([]corev1.PersistentVolume, error) {
	list := &corev1.PersistentVolumeList{}
	if err := c.core.Get().Resource("persistentvolumes").Do(ctx).Into(list); err != nil {
		return nil, fmt.Errorf("list PersistentVolumes: %w", err)
	}
	return slices.DeleteFunc(list.Items, func(pv corev1.PersistentVolume) bool {
		return pv.Spec.CSI == nil || pv.Spec.CSI.Driver != diskv1alpha1.DriverName
	}), nil
}

// capacities are the NodeDiskCapacities, by name. Without the CRD there are none.
func (c *Client) capacities(ctx context.Context) ([]diskv1alpha1.NodeDiskCapacity, error) {
	list := &diskv1alpha1.NodeDiskCapacityList{}
	err := c.disk.Get().Resource("nodediskcapacities").Do(ctx).Into(list)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("list NodeDiskCapacities: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b diskv1alpha1.NodeDiskCapacity) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// printDisks says which disks have Berth's partition table, and how to clear them.
func printDisks(out io.Writer, capacities []diskv1alpha1.NodeDiskCapacity) {
	var disks []string
	for i := range capacities {
		for _, disk := range capacities[i].Status.Disks {
			disks = append(disks, fmt.Sprintf("  on %s: wipefs --all /dev/%s", capacities[i].Name, disk.Device))
		}
	}
	if len(disks) == 0 {
		return
	}
	fmt.Fprintf(out, "These disks have Berth's partition table. A later installation takes them again. To clear them, if none needs their data:\n%s\n",
		strings.Join(disks, "\n"))
}

// state is the phase of a volume, and whether it has lost its owner.
func state(a *diskv1alpha1.Allocation) string {
	if a.OrphanedSince != nil {
		return string(a.Phase) + ", orphan"
	}
	return string(a.Phase)
}

func orDash(s string) string { return cmp.Or(s, "-") }
