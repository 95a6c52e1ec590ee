package kubectl

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestDocuments asserts what scripts get of status, explain and fit: the fields are an interface, and stay.
func TestDocuments(t *testing.T) {
	server := serve(t, "cluster.yaml")
	for name, args := range map[string]string{
		"document-status":  "status",
		"document-waiting": "explain pod kafka-3 -n db",
		"document-placed":  "explain pod pg-1 -n db",
		"document-pending": "explain pod -A --pending",
		"document-claim":   "explain pvc data-pg-1 -n db",
		"document-waits":   "explain pvc data-kafka-3 -n db",
		"document-disk":    "explain disk node-17/nvme1n1",
		"document-device":  "explain disk node-43/nvme0n1",
		"document-node":    "explain node node-29",
		"document-fit":     "fit --class ssd --size 200Gi --count 3 --spread disk",
		"document-like":    "fit --like pg-1 -n db",
	} {
		t.Run(name, func(t *testing.T) {
			text := server.run(t, nil, 0, strings.Fields(args)...)
			have := server.run(t, nil, 0, strings.Fields(args+" -o json")...)
			if have.code != text.code || have.err != "" {
				t.Fatalf("code %d, as text %d: %s", have.code, text.code, have.err)
			}
			var object struct {
				APIVersion, Kind string
				Metadata         struct{ Name string }
				Items            []struct{ Metadata struct{ Name string } }
			}
			if err := json.Unmarshal([]byte(have.out), &object); err != nil {
				t.Fatal(err)
			}
			if object.APIVersion != groupVersion || object.Kind == "" || object.Metadata.Name == "" && len(object.Items) == 0 {
				t.Errorf("it is %+v", object)
			}
			golden(t, name, have.out)
		})
	}
	for args, want := range map[string]string{
		"status -o jsonpath={.agents.ready}/{.agents.wanted}":                                                "6/7",
		"explain pv pvc-821cb3d2-f0a1-545e-8107-c43374038841 -o jsonpath={.on.device}":                       "nvme0n1",
		"fit --class ssd --size 200Gi --count 3 --spread disk -o go-template={{.pods}}":                      "1",
		"explain pod kafka-3 -n db -o jsonpath={.refused[0].missing}":                                        "173415596032",
		"explain node node-29 -o jsonpath={.takesVolumes}{range.checks[?(@.severity==\"Error\")]}{.message}": "falseits",
	} {
		have := server.run(t, nil, 0, strings.Fields(args)...)
		if !strings.HasPrefix(have.out, want) {
			t.Errorf("%s: got %q, %q", args, have.out, have.err)
		}
	}
	for args, says := range map[string]string{
		"status -o wide":                  "unable to match a printer",
		"explain pod pg-1 -n db -o name":  "unable to match a printer",
		"fit --class ssd --size 1Gi -o x": "unable to match a printer",
	} {
		if have := server.run(t, nil, 0, strings.Fields(args)...); have.code != exitError || !strings.Contains(have.err, says) {
			t.Errorf("%s: code %d, %q, %q", args, have.code, have.out, have.err)
		}
	}
}
