package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestOnePodOnly asserts that a ReadWriteOncePod claim belongs to one pod. When that pod is gone, the next one has the
// claim with its data.
func TestOnePodOnly(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", hdd, "100Mi")
	pvc.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	first := e.podOf("first", claimed("data", pvc))
	pv, p, mark := e.fill(first, pvc)
	if !slices.Equal(pv.Spec.AccessModes, pvc.Spec.AccessModes) {
		t.Errorf("the volume has access modes %v", pv.Spec.AccessModes)
	}
	second := e.podOf("second", claimed("data", pvc))
	e.create(second)
	if message := e.waits(second); lacks(message, []string{"ReadWriteOncePod"}) != "" {
		t.Errorf("it waits because of %q", message)
	}
	e.delete(first)
	e.ready(second)
	e.holds(second, mark)
	e.delete(second)
	e.unmake(pvc)
	e.gone(second)
	e.wiped(pv, p, mark)
}

// TestMountOptions asserts that a volume is mounted with the options of its StorageClass.
func TestMountOptions(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	class := storageClass(e.namespace, hdd, v1alpha1.FSTypeExt4)
	class.MountOptions = []string{"noatime", "commit=17"}
	pvc := e.claim("data", class.Name, "100Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	e.make(class, pvc)
	t.Cleanup(func() {
		if err := e.client.Delete(context.Background(), class); err != nil {
			t.Error(err)
		}
	})
	e.create(pod)
	e.ready(pod)
	options := strings.Split(e.exec(pod, `awk '$2 == "/data" {print $4}' /proc/mounts`), ",")
	for _, want := range class.MountOptions {
		if !slices.Contains(options, want) {
			t.Errorf("the pod's volume is mounted with %v, which lacks %s", options, want)
		}
	}
	e.noWarnings()
}

// TestVolumeStatistics asserts that the kubelet reports how full volumes are, inline ones and those of claims.
func TestVolumeStatistics(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("claim", ssd, "400Mi")
	pod := e.podOf("pod", volume("data", ssd, "400Mi", v1alpha1.FSTypeExt4), claimed("claim", pvc))
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	e.write(pod, canary(e))
	// The kubelet reads the statistics of volumes once a minute.
	e.eventually("the kubelet knows how full the volumes are", func(ctx context.Context) error {
		out, err := e.cluster.Kubectl(ctx, "get", "--raw", "/api/v1/nodes/"+pod.Spec.NodeName+"/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary stats.Summary
		if err := json.Unmarshal([]byte(out), &summary); err != nil {
			return err
		}
		found := map[string]stats.VolumeStats{}
		for _, p := range summary.Pods {
			for _, v := range p.VolumeStats {
				if p.PodRef.UID == string(pod.UID) {
					found[v.Name] = v
				}
			}
		}
		for _, name := range []string{"data", "claim"} {
			v, ok := found[name]
			if !ok || v.CapacityBytes == nil || v.UsedBytes == nil || v.Inodes == nil || v.InodesUsed == nil {
				return fmt.Errorf("of volume %s it says %+v", name, v)
			}
			if *v.CapacityBytes < 300<<20 || *v.CapacityBytes > 400<<20 || *v.UsedBytes == 0 || *v.Inodes == 0 || *v.InodesUsed == 0 {
				return fmt.Errorf("volume %s of 400 MiB has %d of %d bytes and %d of %d inodes in use", name, *v.UsedBytes, *v.CapacityBytes, *v.InodesUsed, *v.Inodes)
			}
		}
		if ref := found["claim"].PVCRef; ref == nil || ref.Name != pvc.Name || ref.Namespace != e.namespace {
			return fmt.Errorf("the claim's volume is that of %+v", ref)
		}
		if used := *found["data"].UsedBytes; used < 4_000_000 {
			return fmt.Errorf("4 MB were written, and %d bytes are in use", used)
		}
		return nil
	})
}
