package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/reference"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// unusedByAgent are the metrics that an agent has only after what TestAgentMetrics does not do.
var unusedByAgent = []string{
	"berth_node_disk_failures_total",
	"berth_node_move_duration_seconds", "berth_node_moved_bytes_total", "berth_node_moves_total",
	"berth_node_reclaim_blocked",
	"berth_node_wipe_duration_seconds", "berth_node_wiped_bytes_total", "berth_node_wipes_total",
}

// TestAgentMetrics asserts that an agent serves its metrics with TLS, only to clients that the API server permits to
// read them, and that they are what the reference says. A volume's metrics end with the volume.
func TestAgentMetrics(t *testing.T) {
	n := newNode(t, 200*units.MiB)
	n.reviews()
	start, address := n.process(), freeAddress(t)
	agent := start("--metrics-address="+address, "--metrics-secure")
	t.Cleanup(func() { n.end(agent) })
	n.ready()
	reader, other := n.account("reader", true), n.account("other", false)
	scrape := func(token string) (int, string) {
		t.Helper()
		return scrape(t, "https://"+address+"/metrics", token)
	}
	for name, tc := range map[string]struct {
		token  string
		status int
	}{"no token": {"", 401}, "a wrong token": {"wrong", 401}, "a token without rights": {other, 403}, "the reader's": {reader, 200}} {
		if status, text := scrape(tc.token); status != tc.status || (status == http.StatusOK) != strings.Contains(text, "berth_") {
			t.Errorf("%s: %d %.200s", name, status, text)
		}
	}
	if response, err := http.Get("http://" + address + "/metrics"); err == nil {
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			t.Error("the metrics are served without TLS")
		}
	}

	pod := n.pod("uses", "", nil, n.volumeOf("data", "100Mi", ""))
	n.eventually("the volume is mounted", func() error { return n.publish(pod, "data") })
	testenv.Run(t, "dd", "if=/dev/zero", "of="+filepath.Join(n.target(pod, "data"), "file"), "bs=1M", "count=20", "conv=fsync")
	_, text := scrape(reader)
	checkReference(t, text, "berth_node_", unusedByAgent)
	have, labels := parseText(t, text), fmt.Sprintf("kind=ephemeral namespace=default owner=%s", pod.Name)
	for _, tc := range []struct {
		name        string
		least, most float64
	}{
		{"berth_node_volume_capacity_bytes", 100 << 20, 100 << 20},
		{"berth_node_volume_used_bytes", 20 << 20, 40 << 20},
		{"berth_node_volume_available_bytes", 40 << 20, 80 << 20},
		{"berth_node_volume_inodes", 100, 1 << 20},
		{"berth_node_volume_inodes_used", 11, 13},
		{"berth_node_volume_written_bytes_total", 20 << 20, 60 << 20},
	} {
		if value := have.find(tc.name, labels); len(value) != 1 || value[0] < tc.least || value[0] > tc.most {
			t.Errorf("%s of the pod is %v, want from %v to %v", tc.name, value, tc.least, tc.most)
		}
	}
	if used := have.find("berth_node_disk_volume_bytes", "phase=Formatted"); len(used) != 1 || used[0] != 100<<20 {
		t.Errorf("the volumes of the disk have %v bytes", used)
	}
	if info := have.find("berth_build_info", "component=nodeagent"); len(info) != 1 {
		t.Errorf("%d versions", len(info))
	}
	n.unpublish(pod, "data")
	n.delete(pod)
	n.eventually("the volume's metrics end", func() error {
		_, text := scrape(reader)
		if left := parseText(t, text).find("berth_node_volume_capacity_bytes", labels); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
}

// reviews permits the agent to ask who reads its metrics, as the chart does with metrics.secure.
func (n *node) reviews() {
	n.t.Helper()
	n.create(&rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: n.name + "-reviews"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: n.options.Config.Impersonate.UserName}},
	})
}

// account makes a service account, which may read metrics or not, and returns a token of it.
func (n *node) account(name string, reads bool) (token string) {
	n.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: n.name + "-" + name}}
	n.create(account)
	if reads {
		n.create(&rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: account.Name},
			Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}}},
		})
		n.create(&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: account.Name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: account.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: account.Namespace, Name: account.Name}},
		})
	}
	request := &authenticationv1.TokenRequest{}
	if err := n.client.SubResource("token").Create(n.t.Context(), account, request); err != nil {
		n.t.Fatal(err)
	}
	return request.Status.Token
}

// freeAddress is an address of this machine that no program listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// scrape reads metrics, from a server with any certificate.
func scrape(t *testing.T, url, token string) (status int, text string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// series are the samples of a scrape, by name and labels.
type series map[string]float64

// find returns the values of a metric that has the labels, each written as name=value.
func (s series) find(name, labels string) (values []float64) {
	for _, key := range slices.Sorted(maps.Keys(s)) {
		fields := strings.Fields(key)
		if fields[0] == name && !slices.ContainsFunc(strings.Fields(labels), func(l string) bool { return !slices.Contains(fields, l) }) {
			values = append(values, s[key])
		}
	}
	return values
}

func parseText(t *testing.T, text string) series {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	found := series{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			key := []string{name}
			for _, l := range m.GetLabel() {
				key = append(key, l.GetName()+"="+l.GetValue())
			}
			found[strings.Join(key, " ")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return found
}

// checkReference asserts that what a program serves of a prefix is what the reference says, in both directions: each
// metric is there with its kind and labels, and no other. unused are those that are there only after what the test does
// not do. The names follow the rules of Prometheus.
func checkReference(t *testing.T, text, prefix string, unused []string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	pages, err := reference.Metrics(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, family := range families {
		if !strings.HasPrefix(name, "berth_") {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if kind, want := strings.ToLower(family.GetType().String()), pages[name]; kind != want.Kind || !slices.Equal(labels, want.Labels) {
				t.Errorf("%s is served as %s with the labels %v, and the reference says %s with %v", name, kind, labels, want.Kind, want.Labels)
			}
		}
	}
	for name := range pages {
		if strings.HasPrefix(name, prefix) && (families[name] == nil) != slices.Contains(unused, name) {
			t.Errorf("%s: it is served: %v, and to be unused: %v", name, families[name] != nil, slices.Contains(unused, name))
		}
	}
	samples{text: []byte(text)}.lint(t)
}
