package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"
)

// reviewServer answers reviews as an API server does that knows two users, of whom one may read metrics.
type reviewServer struct {
	t     *testing.T
	asked []string
	fails bool
}

func (s *reviewServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	object, _, err := codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		s.t.Error(err)
	}
	s.asked = append(s.asked, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	if s.fails {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	switch review := object.(type) {
	case *authenticationv1.TokenReview:
		user, known := strings.CutPrefix(review.Spec.Token, "of ")
		review.Status = authenticationv1.TokenReviewStatus{Authenticated: known, User: authenticationv1.UserInfo{Username: user, Groups: []string{"readers of " + user}}}
	case *authorizationv1.SubjectAccessReview:
		a := review.Spec.NonResourceAttributes
		review.Status.Allowed = review.Spec.User == "reader" && slices.Equal(review.Spec.Groups, []string{"readers of reader"}) && a.Path == "/metrics" && a.Verb == "get"
	}
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	if err := json.NewEncoder(w).Encode(object); err != nil {
		s.t.Error(err)
	}
}

func newReviewer(t *testing.T) (*reviewServer, *Reviewer, *clocktesting.FakePassiveClock) {
	t.Helper()
	s := &reviewServer{t: t}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	r, err := NewReviewer(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	now := clocktesting.NewFakePassiveClock(time.Now())
	r.clock = now
	return s, r, now
}

// TestReviewer asserts that only a token that the API server knows, of a user that may get the path, is allowed.
func TestReviewer(t *testing.T) {
	_, r, _ := newReviewer(t)
	for _, tc := range []struct {
		token, path string
		want        Access
	}{
		{"", "/metrics", Unauthenticated}, {"unknown", "/metrics", Unauthenticated}, {"of other", "/metrics", Forbidden},
		{"of reader", "/metrics", Allowed}, {"of reader", "/other", Forbidden},
	} {
		if have, err := r.MayGet(t.Context(), tc.token, tc.path); err != nil || have != tc.want {
			t.Errorf("%q for %s: %v, %v, want %v", tc.token, tc.path, have, err, tc.want)
		}
	}
}

// TestReviewerKeeps asserts that the API server is not asked for each scrape, that a verdict ends, and that an API
// server that fails allows nothing and is asked again.
func TestReviewerKeeps(t *testing.T) {
	s, r, now := newReviewer(t)
	ask := func(token string, want Access, asked int) {
		t.Helper()
		if have, err := r.MayGet(t.Context(), token, "/metrics"); err != nil || have != want || len(s.asked) != asked {
			t.Errorf("%q: %v, %v, %v were asked; want %v and %d", token, have, err, s.asked, want, asked)
		}
		s.asked = nil
	}
	ask("of reader", Allowed, 2)
	ask("of reader", Allowed, 0)
	ask("unknown", Unauthenticated, 1)
	now.SetTime(now.Now().Add(keepRefused))
	ask("of reader", Allowed, 0)
	ask("unknown", Unauthenticated, 1)
	now.SetTime(now.Now().Add(keepAllowed))
	ask("of reader", Allowed, 2)
	now.SetTime(now.Now().Add(keepAllowed))
	s.fails = true
	if have, err := r.MayGet(t.Context(), "of reader", "/metrics"); err == nil || have == Allowed {
		t.Errorf("%v, %v while the API server is away", have, err)
	}
	s.fails, s.asked = false, nil
	ask("of reader", Allowed, 2)
}

// TestReviewerBound asserts that many tokens do not take more and more memory.
func TestReviewerBound(t *testing.T) {
	_, r, _ := newReviewer(t)
	for i := range 3 * maxVerdicts {
		r.keep([32]byte{byte(i)}, Forbidden)
		if len(r.verdicts) > maxVerdicts {
			t.Fatalf("%d verdicts", len(r.verdicts))
		}
	}
}
