package kubectl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// fleetNodes is how many nodes BenchmarkFleet has, beside the recorded ones.
const fleetNodes = 5000

// BenchmarkFleet runs the program against 5000 nodes with two disks and seven volumes each, which are copies of the
// recorded node-07. It reports how long a command takes and how much memory. The server answers from memory: what an
// API server takes to read its store does not count.
func BenchmarkFleet(b *testing.B) {
	program := filepath.Join(b.TempDir(), "kubectl-berth")
	if out, err := exec.CommandContext(b.Context(), "go", "build", "-o", program, "../../cmd/kubectl-berth").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	server := serveFleet(b)
	for _, args := range []string{"status", "map copy-0042", "map --class ssd", "get disks", "explain pod -A --pending"} {
		run := func() (time.Duration, int64) {
			cmd := exec.CommandContext(b.Context(), program, append(strings.Fields(args), "--server", server, "--kubeconfig", "/dev/null")...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			start := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			peak := make(chan int64, 1)
			ended := make(chan struct{})
			go func() { peak <- peakMemory(cmd.Process.Pid, ended) }()
			err := cmd.Wait()
			took := time.Since(start)
			close(ended)
			if err != nil && cmd.ProcessState.ExitCode() != exitNeedsOperator {
				b.Fatalf("%s: %v\n%s", args, err, out.String())
			}
			return took, <-peak
		}
		b.Run(args, func(b *testing.B) {
			// The first run has the server make its answers.
			run()
			var took time.Duration
			var memory int64
			for b.Loop() {
				seconds, kib := run()
				took, memory = took+seconds, max(memory, kib)
			}
			b.ReportMetric(took.Seconds()/float64(b.N), "s/command")
			b.ReportMetric(float64(memory)/1024, "MiB")
		})
	}
}

// peakMemory is the most memory that a process has had until it ended, in KiB. The kernel's account of an ended process
// counts what its parent had when it forked, so the running process is looked at.
func peakMemory(pid int, ended <-chan struct{}) int64 {
	looks := time.NewTicker(5 * time.Millisecond)
	defer looks.Stop()
	var peak int64
	for {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
			if _, after, found := strings.Cut(string(text), "VmHWM:"); found {
				var kib int64
				if _, err := fmt.Sscan(after, &kib); err == nil {
					peak = max(peak, kib)
				}
			}
		}
		select {
		case <-ended:
			return peak
		case <-looks.C:
		}
	}
}

// serveFleet serves the recorded cluster with copies of one of its nodes. An answer is made once.
func serveFleet(b *testing.B) (address string) {
	b.Helper()
	r := serve(b, "cluster.yaml")
	var templates []string
	for i := range r.objects {
		if o := &r.objects[i]; o.GetName() == "node-07" {
			text, err := json.Marshal(o)
			if err != nil {
				b.Fatal(err)
			}
			templates = append(templates, string(text))
		}
	}
	for i := range fleetNodes {
		for _, text := range templates {
			var o unstructured.Unstructured
			if err := o.UnmarshalJSON([]byte(strings.ReplaceAll(text, "node-07", fmt.Sprintf("copy-%04d", i)))); err != nil {
				b.Fatal(err)
			}
			r.objects = append(r.objects, o)
		}
	}
	var answers sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		made, known := answers.Load(request.URL.String())
		if !known {
			recorder := httptest.NewRecorder()
			r.answer(recorder, request)
			made = recorder
			answers.Store(request.URL.String(), made)
		}
		recorder, _ := made.(*httptest.ResponseRecorder)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(recorder.Code)
		_, _ = w.Write(recorder.Body.Bytes())
	}))
	b.Cleanup(server.Close)
	return server.URL
}
