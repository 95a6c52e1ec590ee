package diskcapacity

import (
	"fmt"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// BenchmarkScale compares a cluster beyond the usual size with one of 5000 nodes, 20 volumes a node:
// the heap and the time of the ledger when the scheduler starts, the plugin's part of one pod's cycle,
// and one publication of a node. The API server has no part in it.
func BenchmarkScale(b *testing.B) {
	const volumes = 20
	for _, nodes := range []int{5000, 20_000} {
		b.Run(fmt.Sprintf("nodes=%d/rebuild", nodes), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				env := newBench(b, nil, nodeNames(nodes)...)
				c := newFullCluster(b, env, nodeNames(nodes), volumes)
				c.arrive(b, env.plugin.feed)
				for i, ndc := range c.capacities {
					c.capacities[i] = decoded(b, ndc.(*diskv1alpha1.NodeDiskCapacity))
				}
				before := heap()
				b.StartTimer()
				c.fold(b, env.plugin.feed)
				b.StopTimer()
				b.ReportMetric((heap()-before)/1e6, "MB")
				if s := env.plugin.feed.ledger.Stats(); s.Nodes != nodes || s.Contradictory > 0 || len(c.pods)+len(c.volumes) != nodes*volumes {
					b.Fatalf("%+v with %d volumes, want %d nodes", s, len(c.pods)+len(c.volumes), nodes)
				}
				b.StartTimer()
			}
		})
		env, c := clusterWith(b, nodes, volumes)
		env.claim(b, "wanted", "fast", 50, nil)
		for name, pod := range map[string]func(i int) *corev1.Pod{
			"inline":        func(i int) *corev1.Pod { return podOf("a", int64(1+i%90)) },
			"claim":         func(int) *corev1.Pod { return claimPod("a", "wanted") },
			"three volumes": func(i int) *corev1.Pod { return podWith("a", 3, func(v int) int64 { return int64(1024*(1+i%90) + v) }) },
		} {
			b.Run(fmt.Sprintf("nodes=%d/cycle, %s", nodes, name), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					if env.cycle(b, pod(i)) == 0 {
						b.Fatal("the pod fits nowhere")
					}
				}
			})
		}
		publish := c.publications(nodes / 2)
		b.Run(fmt.Sprintf("nodes=%d/publication", nodes), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				publish(b, env, i)
			}
		})
		b.Run(fmt.Sprintf("nodes=%d/pod bound and gone", nodes), func(b *testing.B) {
			f, logger := env.plugin.feed, klog.Background()
			for i := 0; b.Loop(); i++ {
				pod := podOf("bound-"+strconv.Itoa(i), 1)
				f.foldObject(logger, pod)
				if err := f.pods.Add(pod); err != nil {
					b.Fatal(err)
				}
				env.cycle(b, pod)
				if err := f.pods.Delete(pod); err != nil {
					b.Fatal(err)
				}
				f.foldObject(logger, pod)
			}
		})
	}
}
