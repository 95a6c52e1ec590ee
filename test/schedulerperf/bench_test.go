// Package schedulerperf runs Kubernetes' own benchmark of its scheduler, scheduler_perf, on profiles with and without
// Berth's plugins. Pods without disks should not be slower with them.
package schedulerperf

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	configv1 "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	perf "k8s.io/kubernetes/test/integration/scheduler_perf"
	"k8s.io/kubernetes/test/utils/ktesting"
	"sigs.k8s.io/yaml"

	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/pkg/plugins/volumebinding"
)

var rounds = flag.Int("rounds", 3, "how often the two profiles run, in turn")

func TestMain(m *testing.M) {
	for _, s := range []*kruntime.Scheme{scheme.Scheme, configv1.GetPluginArgConversionScheme()} {
		utilruntime.Must(diskcapacity.AddArgsToScheme(s))
		utilruntime.Must(volumebinding.AddArgsToScheme(s))
	}
	if err := perf.InitTests(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	m.Run()
}

// BenchmarkSchedulingBasic runs the workload on both profiles alternately. It reports how many pods a second each
// schedules, and the ratio of the two in the same round.
func BenchmarkSchedulingBasic(b *testing.B) {
	registry := runtime.Registry{diskcapacity.Name: diskcapacity.New, volumebinding.Name: volumebinding.New}
	// Each workload's log goes to its own file.
	b.Setenv("ARTIFACTS", b.TempDir())
	var stock, berth, ratios []float64
	for round := range *rounds {
		b.Run(fmt.Sprint("round", round+1), func(b *testing.B) {
			results := b.TempDir()
			if err := flag.Set("data-items-dir", results); err != nil {
				b.Fatal(err)
			}
			perf.RunBenchmarkPerfScheduling(b, "testdata/workload.yaml", "berth", registry, perf.WithPrepareFn(installDefinitions))
			rates := throughputs(b, results)
			if len(rates) != 2 {
				b.Fatalf("%d workloads were measured, want 2", len(rates))
			}
			stock, berth, ratios = append(stock, rates[0]), append(berth, rates[1]), append(ratios, rates[1]/rates[0])
		})
	}
	if len(ratios) < *rounds {
		b.Fatalf("%d of %d rounds were measured", len(ratios), *rounds)
	}
	// Not by ReportMetric: a benchmark with sub-benchmarks reports no metrics.
	fmt.Printf("%d rounds, medians: stock %.0f pods/s, with Berth %.0f pods/s, with/without %.3f of %.3f\n",
		*rounds, median(stock), median(berth), median(ratios), ratios)
}

// throughputs reads the pods per second of each workload, in the order in which they ran.
func throughputs(b *testing.B, dir string) []float64 {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 1 {
		b.Fatalf("scheduler_perf wrote the results %v, want one file: %v", files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		b.Fatal(err)
	}
	var results perf.DataItems
	if err := json.Unmarshal(content, &results); err != nil {
		b.Fatal(err)
	}
	var rates []float64
	for _, item := range results.DataItems {
		if item.Labels["Metric"] == "SchedulingThroughput" {
			rates = append(rates, item.Data["Average"])
		}
	}
	return rates
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// installDefinitions applies config/crd. The scheduler runs already, and the plugin retries its watches until the
// definitions exist.
func installDefinitions(tc ktesting.TContext) error {
	client, err := apiextensions.NewForConfig(tc.RESTConfig())
	if err != nil {
		return err
	}
	files, err := filepath.Glob("../../config/crd/disk.berth.dev_*.yaml")
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(content, &crd); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if _, err := client.ApiextensionsV1().CustomResourceDefinitions().Create(tc, &crd, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}
