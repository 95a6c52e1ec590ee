package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	promtestutil "github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/component-base/metrics"
)

// TestReady asserts that an agent is ready when it has taken every step, and that the error names a missing step.
func TestReady(t *testing.T) {
	h := NewHealth()
	for _, step := range readySteps {
		if err := h.Ready(); err == nil || !strings.Contains(err.Error(), step) {
			t.Errorf("before the step %q: %v", step, err)
		}
		h.set(step, true)
	}
	if err := h.Ready(); err != nil {
		t.Error(err)
	}
	h.set(stepDriver, false)
	if err := h.Ready(); err == nil || !strings.Contains(err.Error(), stepDriver) {
		t.Errorf("with the driver not registered any more: %v", err)
	}
}

// TestReadyAfterPublication asserts that a publication that failed does not count.
func TestReadyAfterPublication(t *testing.T) {
	h := NewHealth()
	p := publishProgress{h}
	p.Pass()(errors.New("refused"))
	if h.taken[stepPublished] {
		t.Error("a failed publication counts")
	}
	p.Pass()(nil)
	if !h.taken[stepPublished] {
		t.Error("a publication does not count")
	}
	h.awaitPublished(t.Context(), time.Hour)
	p.Pass()(nil)
}

// TestAlive asserts that a pass that takes too long fails liveness, and that loops which wait for work do not.
func TestAlive(t *testing.T) {
	for _, loop := range []string{loopRescan, loopPublish} {
		h, now := NewHealth(), time.Now()
		h.now = func() time.Time { return now }
		done := h.beginPass(loop)
		now = now.Add(stallLimit)
		if err := h.Alive(); err != nil {
			t.Error(err)
		}
		now = now.Add(time.Second)
		if err := h.Alive(); err == nil || !strings.Contains(err.Error(), loop) {
			t.Errorf("%s stalls: %v", loop, err)
		}
		done()
		now = now.Add(time.Hour)
		if err := h.Alive(); err != nil {
			t.Errorf("%s has ended: %v", loop, err)
		}
	}
}

// TestHealthMetrics asserts that a publication that fails, or does not end, is measured from its first try, and that
// the driver's registration is shown.
func TestHealthMetrics(t *testing.T) {
	h, now := NewHealth(), time.Now()
	h.now = func() time.Time { return now }
	p := publishProgress{h}
	check := func(step string, want time.Duration) {
		t.Helper()
		if _, have := h.state(); have != want {
			t.Errorf("%s: not published for %s, want %s", step, have, want)
		}
	}
	check("at the start", 0)
	done := p.Pass()
	now = now.Add(time.Minute)
	check("a pass that does not end", time.Minute)
	done(errors.New("refused"))
	now = now.Add(time.Minute)
	check("a pass that failed", 2*time.Minute)
	p.Pass()(errors.New("refused again"))
	check("a second pass that failed", 2*time.Minute)
	p.Pass()(nil)
	now = now.Add(time.Minute)
	check("a publication", 0)
	h.set(stepDriver, true)
	if registered, _ := h.state(); !registered {
		t.Error("the registration is not shown")
	}
	registry := metrics.NewKubeRegistry()
	registry.CustomMustRegister(&healthCollector{health: h})
	if problems, err := promtestutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if have, err := promtestutil.GatherAndCount(registry); err != nil || have != 3 {
		t.Errorf("%d series, %v", have, err)
	}
}
