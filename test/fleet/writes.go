package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/rest"
)

// Writes are numbers of requests that write, by verb, resource and subresource.
type Writes map[string]float64

// Publications is the kind of request with which agents publish.
const Publications = "PUT nodediskcapacities/status"

// notOfPods are resources whose writes do not depend on pods but on time or requests. These are leases, the API
// server's own book-keeping, and reviews, which are queries by POST.
var notOfPods = []string{"leases", "apiservices", "tokenreviews", "subjectaccessreviews"}

// refused marks requests that the API server answered without writing.
const refused = " answered "

// Writes reads from the API server's own metrics how many it has served.
func (f *Fleet) Writes(ctx context.Context) (Writes, error) {
	httpClient, err := rest.HTTPClientFor(f.Config)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Config.Host+"/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bufio.NewReader(response.Body))
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	family := families["apiserver_request_total"]
	if family == nil {
		return nil, errors.New("the API server has no metric apiserver_request_total")
	}
	writes := Writes{}
	for _, m := range family.Metric {
		label := map[string]string{}
		for _, l := range m.Label {
			label[l.GetName()] = l.GetValue()
		}
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "APPLY", "DELETE"}, label["verb"]) || slices.Contains(notOfPods, label["resource"]) {
			continue
		}
		what := label["resource"]
		if label["subresource"] != "" {
			what += "/" + label["subresource"]
		}
		// A client that is faster than the API server gets a 429 and tries again. Nothing is written then, but it is
		// reported.
		if code := label["code"]; !strings.HasPrefix(code, "2") {
			what += refused + code
		}
		writes[label["verb"]+" "+what] += m.GetCounter().GetValue()
	}
	return writes, nil
}

// SettledWrites waits until two consecutive reads return the same numbers.
func (f *Fleet) SettledWrites(ctx context.Context) (Writes, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	writes, err := f.Writes(ctx)
	changed := ""
	for err == nil {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the API server's number of writes never settled, in the end because of %s: %w", changed, context.Cause(ctx))
		case <-time.After(2 * time.Second):
		}
		var next Writes
		if next, err = f.Writes(ctx); err != nil {
			break
		}
		if maps.Equal(writes, next) {
			return next, nil
		}
		for key := range next {
			if next[key] != writes[key] {
				changed = key
			}
		}
		writes = next
	}
	return nil, err
}

// Since is the difference to an earlier reading, divided by the number of pods.
func (w Writes) Since(before Writes, pods int) Writes {
	since := Writes{}
	for key, n := range w {
		if d := n - before[key]; d > 0 {
			since[key] = d / float64(pods)
		}
	}
	return since
}

// Total is the sum of all but those that the API server refused.
func (w Writes) Total() float64 {
	total := 0.0
	for key, n := range w {
		if !strings.Contains(key, refused) {
			total += n
		}
	}
	return total
}

// String lists those that are more than a few in a thousand.
func (w Writes) String() string {
	var parts []string
	for key, n := range w {
		if n >= 0.005 {
			parts = append(parts, fmt.Sprintf("%s %.2f", key, n))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
