package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// BenchmarkAgentAtRest measures an idle agent of a node with two disks, 40 pods and 20 volumes, from /proc.
func BenchmarkAgentAtRest(b *testing.B) {
	const volumes, plain, watched = 20, 20, 30 * time.Second
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 10*time.Minute, fmt.Errorf("the benchmark took over 10 minutes"))
		defer cancel()
		n := newAgentNode(ctx, b, 2, 8*units.GiB)
		for i := range volumes {
			n.pod(ctx, fmt.Sprintf("disk-%d", i), 300*units.MiB, diskv1alpha1.FSTypeExt4, nil)
		}
		for i := range plain {
			n.pod(ctx, fmt.Sprintf("plain-%d", i), 0, "", nil)
		}
		n.status(ctx, "all volumes are Formatted", func(s *diskv1alpha1.NodeDiskCapacityStatus) bool {
			formatted := 0
			for _, d := range s.Disks {
				for _, a := range d.Allocations {
					if a.Phase == diskv1alpha1.PhaseFormatted {
						formatted++
					}
				}
			}
			return formatted == volumes
		})
		pid, err := n.cluster.PID("agent-" + n.name)
		n.must(err)
		// Waits until the work that the volumes caused has ended.
		<-time.After(5 * time.Second)
		before, began := n.cpu(pid), time.Now()
		<-time.After(watched)
		used := n.cpu(pid) - before
		b.ReportMetric(float64(n.memory(pid, "VmRSS"))/1024, "RSS-MiB")
		b.ReportMetric(float64(n.memory(pid, "RssAnon"))/1024, "anonymous-MiB")
		b.ReportMetric(100*used.Seconds()/time.Since(began).Seconds(), "%-of-a-core")
	}
}

// cpu is the time that the process has used. The kernel counts it in hundredths.
func (n *agentNode) cpu(pid int) time.Duration {
	n.tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	n.must(err)
	// Fields are counted behind the name, which may have spaces.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] {
		t, err := strconv.Atoi(f)
		n.must(err)
		ticks += time.Duration(t)
	}
	return ticks * time.Second / 100
}

// memory reads a line of the process's status, in KiB.
func (n *agentNode) memory(pid int, name string) int {
	n.tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	n.must(err)
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			n.must(err)
			return kib
		}
	}
	n.tb.Fatalf("no %s in the status of process %d", name, pid)
	return 0
}
