// Command manifests writes the manifests in config from the Helm chart, so that both install the same. It copies the
// CRDs into the chart, and the version of the repository.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/berthdev/berth/build/helm"
)

// header of each manifest.
const header = "# Rendered from charts/berth by make generate: change it there.\n"

// kubeVersion is the version of Kubernetes for which the chart is rendered.
const kubeVersion = "1.36.0"

// folders of config that are written, with a kustomization that is not.
var folders = []string{"admission", "nodeagent", "rbac", "scheduler"}

func main() {
	root := flag.String("root", ".", "root of the repository")
	flag.Parse()
	if err := write(context.Background(), *root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(ctx context.Context, root string) error {
	programs, err := helm.Build(ctx, root)
	if err != nil {
		return err
	}
	copies, err := intoChart(root)
	if err != nil {
		return err
	}
	if err := writeAll(root, copies); err != nil {
		return err
	}
	files, err := render(ctx, programs)
	if err != nil {
		return err
	}
	return writeAll(root, files)
}

func writeAll(root string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	chartVersion = regexp.MustCompile(`(?m)^version: .*$`)
	appVersion   = regexp.MustCompile(`(?m)^appVersion: .*$`)
)

// intoChart are the files of the chart that follow from others: the CRDs, and Chart.yaml with the version.
func intoChart(root string) (map[string]string, error) {
	files := map[string]string{}
	crds, err := filepath.Glob(filepath.Join(root, "config", "crd", "disk.berth.dev_*.yaml"))
	if err != nil || len(crds) == 0 {
		return nil, fmt.Errorf("config/crd has no CRDs: %w", errors.Join(err, os.ErrNotExist))
	}
	for _, crd := range crds {
		text, err := os.ReadFile(crd)
		if err != nil {
			return nil, err
		}
		files["charts/berth/files/crd/"+filepath.Base(crd)] = string(text)
	}
	chart, err := os.ReadFile(filepath.Join(root, "charts/berth/Chart.yaml"))
	if err != nil {
		return nil, err
	}
	version, err := os.ReadFile(filepath.Join(root, "VERSION"))
	if err != nil {
		return nil, err
	}
	tag := string(bytes.TrimSpace(version))
	chart = chartVersion.ReplaceAll(chart, []byte("version: "+strings.TrimPrefix(tag, "v")))
	files["charts/berth/Chart.yaml"] = string(appVersion.ReplaceAll(chart, []byte("appVersion: "+tag)))
	return files, nil
}

// render returns the files of config by their names.
func render(ctx context.Context, programs *helm.Programs) (map[string]string, error) {
	template := func(more ...string) (map[string]string, error) {
		// Without a registry the images are those that were imported on each node.
		out, err := programs.Helm(ctx, append([]string{
			"template", "berth", programs.Chart(), "--namespace=kube-system", "--kube-version=" + kubeVersion, "--set=image.pullPolicy=Never",
		}, more...)...)
		if err != nil {
			return nil, err
		}
		return bySource(out), nil
	}
	sources, err := template()
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, folder := range folders {
		for source, text := range sources {
			if path.Dir(source) == folder && path.Base(source) != "configmap.yaml" {
				files["config/"+source] = header + ownLines(text)
			}
		}
	}
	instead, err := template("--set=scheduler.extraProfiles[0].schedulerName=default-scheduler")
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"beside": sources["scheduler/configmap.yaml"], "instead": instead["scheduler/configmap.yaml"]} {
		var config corev1.ConfigMap
		if err := yaml.UnmarshalStrict([]byte(text), &config); err != nil {
			return nil, fmt.Errorf("configuration of the scheduler: %w", err)
		}
		file := map[string]string{"beside": "kube-scheduler-config-beside.yaml", "instead": "kube-scheduler-config.yaml"}[name]
		files["config/scheduler/"+file] = header + strings.TrimRight(config.Data["config.yaml"], "\n") + "\n"
	}
	return files, nil
}

// bySource splits what helm template prints by the file below templates.
func bySource(rendered string) map[string]string {
	const mark = "# Source: berth/templates/"
	out := map[string]string{}
	for document := range strings.SplitSeq("\n"+rendered, "\n---\n") {
		source, text, ok := strings.Cut(document, "\n")
		if !ok || !strings.HasPrefix(source, mark) {
			continue
		}
		name := strings.TrimPrefix(source, mark)
		if out[name] != "" {
			out[name] += "---\n"
		}
		out[name] += strings.Trim(text, "\n") + "\n"
	}
	return out
}

// ownLines are the lines that do not belong to Helm.
func ownLines(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		key := strings.TrimSpace(line)
		if strings.HasPrefix(key, "helm.sh/chart:") || key == "app.kubernetes.io/managed-by: Helm" {
			continue
		}
		if strings.HasPrefix(key, "checksum/config:") {
			// The name of kustomize's ConfigMap has the checksum. The line before is "annotations:".
			lines = lines[:len(lines)-1]
			continue
		}
		lines = append(lines, strings.TrimRight(line, " \n")+"\n")
	}
	return strings.Join(lines, "")
}
