package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
)

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, apiextensionsv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	return scheme, nil
}

// installation is what Berth needs in a cluster.
var installation = []string{"config/crd", "config/admission", "config/nodeagent", "config/scheduler"}

// runHere are the kinds in the installation that this package stands in for: it runs
// the programs as processes, with the configuration adapted.
var runHere = map[string]bool{"Deployment": true, "DaemonSet": true, "KubeSchedulerConfiguration": true}

// Install applies everything of Berth's own manifests but the workloads, once.
// Starting an agent or a scheduler does it, too.
func (c *Cluster) Install(ctx context.Context) error {
	c.installing.Lock()
	defer c.installing.Unlock()
	if c.installed {
		return nil
	}
	err := c.apply(ctx, func(kind string) bool { return !runHere[kind] }, installation...)
	c.installed = err == nil
	return err
}

// Apply applies manifests by server-side apply: files, or directories with all
// their YAML files, relative to the repository. It returns when the custom resources
// among them can be used.
func (c *Cluster) Apply(ctx context.Context, paths ...string) error {
	return c.apply(ctx, func(string) bool { return true }, paths...)
}

func (c *Cluster) apply(ctx context.Context, wanted func(kind string) bool, paths ...string) error {
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.repository, path)
		}
		files, err := manifests(path)
		if err != nil {
			return fmt.Errorf("find manifests: %w", err)
		}
		for _, f := range files {
			if err := c.applyFile(ctx, f, wanted); err != nil {
				return fmt.Errorf("apply %s: %w", f, err)
			}
		}
	}
	return nil
}

func manifests(path string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// kustomization.yaml is for kustomize, not for the API server.
		if !d.IsDir() && (p == path || filepath.Ext(p) == ".yaml") && !strings.HasPrefix(d.Name(), "kustomization") {
			files = append(files, p)
		}
		return nil
	})
	return files, err
}

func (c *Cluster) applyFile(ctx context.Context, path string, wanted func(kind string) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.applyFrom(ctx, f, wanted)
}

// ApplyText applies manifests as a program prints them.
func (c *Cluster) ApplyText(ctx context.Context, text string) error {
	return c.applyFrom(ctx, strings.NewReader(text), func(string) bool { return true })
}

func (c *Cluster) applyFrom(ctx context.Context, text io.Reader, wanted func(kind string) bool) error {
	decoder := yaml.NewYAMLOrJSONDecoder(text, 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(object.Object) == 0 || !wanted(object.GetKind()) {
			continue
		}
		if err := c.applyObject(ctx, object); err != nil {
			return err
		}
	}
}

func (c *Cluster) applyObject(ctx context.Context, object *unstructured.Unstructured) error {
	name := object.GetKind() + " " + object.GetName()
	mapping, err := c.client.RESTMapper().RESTMapping(object.GroupVersionKind().GroupKind(), object.GroupVersionKind().Version)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace && object.GetNamespace() == "" {
		object.SetNamespace("default")
	}
	err = c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("berth-cluster"), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if object.GetKind() == "CustomResourceDefinition" {
		return c.waitEstablished(ctx, object.GetName())
	}
	return nil
}

// waitEstablished waits until the API server serves a custom resource.
func (c *Cluster) waitEstablished(ctx context.Context, name string) error {
	return Eventually(ctx, patience, func(ctx context.Context) error {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := c.client.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
			return err
		}
		for _, condition := range crd.Status.Conditions {
			if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("CustomResourceDefinition %s is not established", name)
	})
}

// Eventually looks until the condition holds, and returns the last reason why it
// did not.
func Eventually(caller context.Context, patience time.Duration, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(caller, patience)
	defer cancel()
	var last error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		// The reason of the last look is the deadline itself, and says nothing.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			if caller.Err() != nil {
				return caller.Err()
			}
			return fmt.Errorf("not within %s: %w", patience, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
