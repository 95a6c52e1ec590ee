package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

func init() {
	Scheme.AddKnownTypes(authenticationv1.SchemeGroupVersion, &authenticationv1.TokenReview{})
	Scheme.AddKnownTypes(authorizationv1.SchemeGroupVersion, &authorizationv1.SubjectAccessReview{})
	metav1.AddToGroupVersion(Scheme, authenticationv1.SchemeGroupVersion)
	metav1.AddToGroupVersion(Scheme, authorizationv1.SchemeGroupVersion)
}

// Access is what the API server says about a client of the agent.
type Access int

// Unauthenticated: the API server does not know the token. Forbidden: it knows it, and does not permit the request.
const (
	Unauthenticated Access = iota
	Forbidden
	Allowed
)

// How long a verdict is kept, and of how many tokens. One that allows is kept for longer: scrapes repeat.
const (
	keepAllowed  = time.Minute
	keepRefused  = 10 * time.Second
	maxVerdicts  = 64
	reviewQPS    = 2
	reviewBurst  = 10
	reviewsLimit = 5 * time.Second
)

// Reviewer asks the API server who sends a request to the agent, and whether that user may get the path. It is what
// k8s.io/apiserver's delegating filters do, without their packages, which would double the agent's memory.
type Reviewer struct {
	authentication, authorization rest.Interface
	clock                         clock.PassiveClock

	mu sync.Mutex
	// verdicts are by the hash of token and path.
	verdicts map[[sha256.Size]byte]verdict
}

type verdict struct {
	access Access
	until  time.Time
}

// NewReviewer returns a Reviewer that sends few requests, so that many clients with wrong tokens do not load the API
// server.
func NewReviewer(config *rest.Config) (*Reviewer, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.RateLimiter = reviewQPS, reviewBurst, nil
	authentication, err := restClient(config, authenticationv1.SchemeGroupVersion, "/apis", runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, err
	}
	authorization, err := restClient(config, authorizationv1.SchemeGroupVersion, "/apis", runtime.ContentTypeProtobuf)
	if err != nil {
		return nil, err
	}
	return &Reviewer{authentication: authentication, authorization: authorization, clock: clock.RealClock{}, verdicts: map[[sha256.Size]byte]verdict{}}, nil
}

// MayGet returns whether the user with the token may get the path. With an error nothing is known.
func (r *Reviewer) MayGet(ctx context.Context, token, path string) (Access, error) {
	if token == "" {
		return Unauthenticated, nil
	}
	key := sha256.Sum256([]byte(path + "\x00" + token))
	if access, known := r.known(key); known {
		return access, nil
	}
	ctx, cancel := context.WithTimeout(ctx, reviewsLimit)
	defer cancel()
	access, err := r.review(ctx, token, path)
	if err != nil {
		return Unauthenticated, err
	}
	r.keep(key, access)
	return access, nil
}

// review asks the API server.
func (r *Reviewer) review(ctx context.Context, token, path string) (Access, error) {
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := r.authentication.Post().Resource("tokenreviews").Body(who).Do(ctx).Into(who); err != nil {
		return Unauthenticated, fmt.Errorf("cannot ask the API server who sends a token: %w", err)
	}
	if !who.Status.Authenticated {
		return Unauthenticated, nil
	}
	user := who.Status.User
	extra := map[string]authorizationv1.ExtraValue{}
	for name, values := range user.Extra {
		extra[name] = authorizationv1.ExtraValue(values)
	}
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
	}}
	if err := r.authorization.Post().Resource("subjectaccessreviews").Body(may).Do(ctx).Into(may); err != nil {
		return Unauthenticated, fmt.Errorf("cannot ask the API server what %s may read: %w", user.Username, err)
	}
	if !may.Status.Allowed {
		return Forbidden, nil
	}
	return Allowed, nil
}

// known returns the verdict that is kept.
func (r *Reviewer) known(key [sha256.Size]byte) (Access, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.verdicts[key]
	return v.access, ok && r.clock.Now().Before(v.until)
}

// keep keeps a verdict. When there are too many, those that are over are dropped, and then all.
func (r *Reviewer) keep(key [sha256.Size]byte, access Access) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	if len(r.verdicts) >= maxVerdicts {
		for k, v := range r.verdicts {
			if !now.Before(v.until) {
				delete(r.verdicts, k)
			}
		}
	}
	if len(r.verdicts) >= maxVerdicts {
		clear(r.verdicts)
	}
	keep := keepRefused
	if access == Allowed {
		keep = keepAllowed
	}
	r.verdicts[key] = verdict{access, now.Add(keep)}
}
