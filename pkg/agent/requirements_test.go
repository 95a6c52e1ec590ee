package agent

import (
	"os"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestImageHasPrograms asserts that the agent's image has every program that the agent runs.
func TestImageHasPrograms(t *testing.T) {
	text, err := os.ReadFile("../../build/images/images.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var image struct {
		Programs []string `json:"programs"`
	}
	if err := yaml.Unmarshal(text, &image); err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
		if !slices.Contains(image.Programs, program) {
			t.Errorf("build/images/images.yaml does not name %s", program)
		}
	}
}
