// Package e2e tests Berth on a cluster with real kubelets and real (loop) disks: the use by users, and failures on a
// node.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	// patience is for what should take seconds, on a machine that does other work, too.
	patience = 3 * time.Minute
)

// Classes of the shared cluster. node1 and node2 have a disk of each sector size. The first two disks of node3 are of
// one class, for tests that need their own node. Each node also has one disk each of ssd and hdd, which are for claims.
const (
	sector512  = "sector512"
	sector4096 = "sector4096"
	pair       = "pair"
	pairNode   = "node3"
	ssd        = "ssd"
	hdd        = "hdd"
)

const disksOfANode = 4

// unchecked is the label of namespaces in which the admission policy for pods does not apply, as if it were not
// installed.
const unchecked = "unchecked"

var nodes = []cluster.NodeOptions{
	{Disks: disks(512, 4096, 512, 4096)},
	{Disks: disks(4096, 512, 512, 4096)},
	{Labels: map[string]string{"disks": pair}, Disks: disks(512, 4096, 512, 4096)},
}

func disks(sectors ...int) []cluster.DiskOptions {
	var d []cluster.DiskOptions
	for _, s := range sectors {
		d = append(d, cluster.DiskOptions{Size: 2 * units.GiB, SectorSize: s})
	}
	return d
}

// shared is the cluster of all tests but one: starting it costs more than most of them.
var shared struct {
	sync.Once
	cluster *cluster.Cluster
	err     error
}

func sharedCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "containerd", "runc", "blkid", "mkfs.ext4", "mkfs.xfs")
	shared.Do(func() { shared.cluster, shared.err = start(context.Background()) })
	if shared.err != nil {
		t.Fatalf("no cluster: %v", shared.err)
	}
	return shared.cluster
}

func start(ctx context.Context) (*cluster.Cluster, error) {
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "e2e", Log: os.Stderr, Kubelets: true, Nodes: nodes, Agents: true, Scheduler: true,
		AgentArgs: []string{"--orphan-grace=3s", "--eviction-grace=2s", "--v=2"},
	})
	if err != nil {
		return nil, err
	}
	shared.cluster = c // so that it is stopped even after an error
	for _, class := range classes(c) {
		if err := c.Client().Create(ctx, class); err != nil {
			return nil, err
		}
	}
	for _, class := range storageClasses() {
		if err := c.Client().Create(ctx, class); err != nil {
			return nil, err
		}
	}
	if err := exempt(ctx, c.Client()); err != nil {
		return nil, err
	}
	return c, cluster.Eventually(ctx, patience, func(ctx context.Context) error { return inService(ctx, c.Client(), disksOfANode*len(nodes)) })
}

func classes(c *cluster.Cluster) []*v1alpha1.DiskClass {
	byName := map[string]*v1alpha1.DiskClass{}
	for _, name := range []string{sector512, sector4096, pair, ssd, hdd} {
		byName[name] = &v1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
		byName[name].Spec.Adoption, byName[name].Spec.NewDeviceGrace = v1alpha1.AdoptAutomatic, &metav1.Duration{}
	}
	byName[pair].Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: nodes[2].Labels}
	for _, n := range c.Nodes() {
		for i, d := range n.Disks {
			name := pair
			switch {
			case i == 2:
				name = ssd
			case i == 3:
				name = hdd
			case n.Name == pairNode:
			case d.SectorSize == 512:
				name = sector512
			default:
				name = sector4096
			}
			devices := &byName[name].Spec.Devices
			devices.Paths = append(devices.Paths, d.Path)
		}
	}
	return slices.Collect(maps.Values(byName))
}

// exempt exempts the namespaces with the label unchecked from the policy for pods.
func exempt(ctx context.Context, c client.Client) error {
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{}
	if err := c.Get(ctx, client.ObjectKey{Name: "pods.disk.berth.dev"}, binding); err != nil {
		return err
	}
	binding.Spec.MatchResources = &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: unchecked, Operator: metav1.LabelSelectorOpDoesNotExist}},
	}}
	return c.Update(ctx, binding)
}

// inService returns nil when that many disks take volumes.
func inService(ctx context.Context, c client.Client, want int) error {
	list := &v1alpha1.NodeDiskCapacityList{}
	if err := c.List(ctx, list); err != nil {
		return err
	}
	ready := 0
	for _, ndc := range list.Items {
		for _, d := range ndc.Status.Disks {
			if d.State == v1alpha1.DiskReady && d.Class != "" {
				ready++
			}
		}
	}
	if ready != want {
		return fmt.Errorf("%d of %d disks are in service", ready, want)
	}
	return nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.cluster != nil {
		// The logs are moved when the cluster stops.
		if err := errors.Join(complaints(shared.cluster.LogDir()), shared.cluster.Stop()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// complaints returns an error for each line of Berth's logs that no test should cause.
func complaints(logs string) error {
	files, err := filepath.Glob(filepath.Join(logs, "agent-*.log"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range append(files, filepath.Join(logs, "scheduler.log")) {
		data, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, complaintsIn(filepath.Base(file), string(data)))
	}
	return errors.Join(errs...)
}

// complaintsIn finds the lines of a log about missing permissions or programs, or a panic.
func complaintsIn(name, log string) error {
	var errs []error
	for line := range strings.Lines(log) {
		for _, bad := range []string{"forbidden", "Unauthorized", "panic", "not found in $PATH"} {
			if strings.Contains(line, bad) {
				errs = append(errs, fmt.Errorf("%s: %s", name, line))
			}
		}
	}
	return errors.Join(errs...)
}
