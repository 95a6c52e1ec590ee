package chart

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// writeSchemas writes a JSON schema of each kind that an API server serves, under the name by which kubeconform looks
// for it, and returns the names. kubeconform's own schemas are on the internet.
func writeSchemas(ctx context.Context, config *rest.Config, dir string) ([]string, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	data, err := client.RESTClient().Get().AbsPath("/openapi/v2").Do(ctx).Raw()
	if err != nil {
		return nil, fmt.Errorf("read the OpenAPI of the API server: %w", err)
	}
	var api struct {
		Definitions map[string]map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal(data, &api); err != nil {
		return nil, err
	}
	for name, definition := range api.Definitions {
		strict(definition)
		switch {
		case strings.HasSuffix(name, ".intstr.IntOrString"):
			api.Definitions[name] = map[string]any{"type": []string{"string", "integer"}}
		case strings.HasSuffix(name, ".api.resource.Quantity"):
			api.Definitions[name] = map[string]any{"type": []string{"string", "number"}}
		}
	}
	var kinds []string
	for name, definition := range api.Definitions {
		groups, _ := definition["x-kubernetes-group-version-kind"].([]any)
		for _, group := range groups {
			kind, _ := group.(map[string]any)
			// As kubeconform writes it: the kind, the first part of the group, and the version.
			file := strings.ToLower(fmt.Sprint(kind["kind"]))
			if g, _, _ := strings.Cut(fmt.Sprint(kind["group"]), "."); g != "" {
				file += "-" + g
			}
			file += "-" + fmt.Sprint(kind["version"])
			used := map[string]any{}
			collect(api.Definitions, name, used)
			schema, err := json.Marshal(map[string]any{"$ref": "#/definitions/" + name, "definitions": used})
			if err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(dir, file+".json"), schema, 0o644); err != nil {
				return nil, err
			}
			kinds = append(kinds, file)
		}
	}
	return kinds, nil
}

// strict makes a schema refuse fields that it does not have.
func strict(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if s["x-kubernetes-int-or-string"] == true {
			s["type"] = []string{"string", "integer"}
		}
		if _, has := s["properties"]; has && s["additionalProperties"] == nil && s["x-kubernetes-preserve-unknown-fields"] != true {
			s["additionalProperties"] = false
		}
		// What a format means, JSON schema does not know.
		if _, isText := s["format"].(string); isText {
			delete(s, "format")
		}
		for _, value := range s {
			strict(value)
		}
	case []any:
		for _, value := range s {
			strict(value)
		}
	}
}

// collect adds a definition, and all that it refers to.
func collect(all map[string]map[string]any, name string, used map[string]any) {
	if used[name] != nil || all[name] == nil {
		return
	}
	used[name] = all[name]
	var walk func(any)
	walk = func(value any) {
		switch v := value.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				collect(all, strings.TrimPrefix(ref, "#/definitions/"), used)
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(all[name])
}
