package bench

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/process"
)

// publications is how many are timed together. CPU time is counted in hundredths of a second.
const publications = 400

// BenchmarkPublication measures the processor time of kube-apiserver and of etcd for one publication of a
// NodeDiskCapacity. It is written like by the agent, on a cluster where nothing else happens.
func BenchmarkPublication(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 20*time.Minute, fmt.Errorf("the benchmark took over 20 minutes"))
		defer cancel()
		c, err := cluster.Start(ctx, cluster.Options{Name: "bench-publication", Log: os.Stderr, Manifests: []string{"config/crd"}})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := c.Stop(); err != nil {
				b.Error(err)
			}
		})
		for _, shape := range []struct {
			name                    string
			disks, volumes, devices int
		}{{"small", 2, 5, 3}, {"large", 12, 8, 16}} {
			ndc := capacityOf(shape.name, shape.disks, shape.volumes, shape.devices)
			managed := ndc.DeepCopy()
			managed.Name += "-managed"
			// Each round is 400 publications, then 400 as they were if the object kept its managed fields.
			var server, etcd, serverManaged []float64
			for range *rounds {
				s, e := publish(ctx, b, c, ndc, false)
				server, etcd = append(server, milliseconds(s)), append(etcd, milliseconds(e))
				s, _ = publish(ctx, b, c, managed, true)
				serverManaged = append(serverManaged, milliseconds(s))
			}
			b.Logf("%s: API server %.2f ms of CPU a publication, etcd %.2f; API server with managed fields %.2f",
				shape.name, server, etcd, serverManaged)
			b.ReportMetric(median(server), shape.name+"-server-ms")
			b.ReportMetric(median(etcd), shape.name+"-etcd-ms")
			b.ReportMetric(median(serverManaged), shape.name+"-managed-server-ms")
		}
	}
}

// publish writes the object's status again and again, each time with one volume more or less, and returns the
// processor time of one write. Without managed, the object has no managed fields, as after an agent's first write.
func publish(ctx context.Context, b *testing.B, c *cluster.Cluster, ndc *diskv1alpha1.NodeDiskCapacity, managed bool) (server, etcd time.Duration) {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	used := func(component string) time.Duration {
		b.Helper()
		pid, err := c.PID(component)
		must(err)
		took, err := process.CPUTime(pid)
		must(err)
		return took
	}
	now := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: ndc.Name}}
	// The CRD is served a moment after it is created.
	must(cluster.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		return client.IgnoreAlreadyExists(c.Client().Create(ctx, now))
	}))
	must(c.Client().Get(ctx, client.ObjectKeyFromObject(ndc), now))
	if !managed {
		now.ManagedFields = []metav1.ManagedFieldsEntry{{}}
		must(c.Client().Update(ctx, now))
	}
	if (len(now.ManagedFields) > 0) != managed {
		b.Fatalf("managed fields are %v", now.ManagedFields)
	}
	serverBefore, etcdBefore := used("kube-apiserver"), used("etcd")
	for i := range publications {
		now.Status = *ndc.Status.DeepCopy()
		if d := &now.Status.Disks[i/2%len(now.Status.Disks)]; i%2 == 0 {
			gone := d.Allocations[len(d.Allocations)-1]
			d.Allocations = d.Allocations[:len(d.Allocations)-1]
			d.Free = append(d.Free, gone.Extent)
		}
		must(c.Client().Status().Update(ctx, now))
	}
	return (used("kube-apiserver") - serverBefore) / publications, (used("etcd") - etcdBefore) / publications
}

// capacityOf is what an agent publishes of a node with so many disks, volumes on each, and devices.
func capacityOf(name string, disks, volumes, devices int) *diskv1alpha1.NodeDiskCapacity {
	const size, each = int64(1) << 40, int64(1) << 30
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for i := range devices {
		d := diskv1alpha1.Device{
			Name: fmt.Sprintf("nvme%dn1", i), ByID: fmt.Sprintf("/dev/disk/by-id/nvme-SAMSUNG_MZQL21T9HCJR-00A07_S64GNE0R%06d", i),
			WWN: fmt.Sprintf("eui.36344730%024d", i), Serial: fmt.Sprintf("S64GNE0R%06d", i), Model: "SAMSUNG MZQL21T9HCJR-00A07",
			Transport: "pcie", Size: size, State: diskv1alpha1.DeviceExcluded, Reasons: []string{"holds the root file system of the node", "no DiskClass selects it"},
		}
		if i < disks {
			d.State, d.Class, d.Disk, d.Reasons = diskv1alpha1.DeviceInUse, "ssd", diskv1alpha1.PartitionID(d.Name), nil
		}
		ndc.Status.Devices = append(ndc.Status.Devices, d)
	}
	for i := range disks {
		d := diskv1alpha1.Disk{
			ID: diskv1alpha1.PartitionID(ndc.Status.Devices[i].Name), Device: ndc.Status.Devices[i].Name, Class: "ssd", Model: ndc.Status.Devices[i].Model,
			SectorSize: 512, Size: size, Overhead: 3 * diskv1alpha1.Alignment, State: diskv1alpha1.DiskReady,
		}
		for v := range volumes {
			id := fmt.Sprintf("csi-%s-%d-%d", name, i, v)
			d.Allocations = append(d.Allocations, diskv1alpha1.Allocation{
				Volume: id, Partition: diskv1alpha1.PartitionID(id), Phase: diskv1alpha1.PhaseFormatted, Owner: fmt.Sprintf("team-a/database-%d-%d", i, v),
				Extent: diskv1alpha1.Extent{Start: 2*diskv1alpha1.Alignment + int64(v)*each, Length: each},
			})
		}
		start := 2*diskv1alpha1.Alignment + int64(volumes)*each
		d.Free = []diskv1alpha1.Extent{{Start: start, Length: size - start - diskv1alpha1.Alignment}}
		ndc.Status.Disks = append(ndc.Status.Disks, d)
	}
	ndc.Status.Conditions = []metav1.Condition{{
		Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "AllDisksServe", Message: "all disks are in service",
		LastTransitionTime: metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
	}}
	ndc.Status.Summary = diskv1alpha1.Summary{Disks: int32(disks), Size: "ssd=2Ti", Free: "ssd=1Ti", Largest: "ssd=1Ti", Volumes: int32(disks * volumes)}
	return ndc
}
