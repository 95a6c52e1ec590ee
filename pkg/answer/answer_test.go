package answer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestOf has every kind of error that k8s.io/apimachinery makes, and those that come from elsewhere.
func TestOf(t *testing.T) {
	r, k := schema.GroupResource{Resource: "persistentvolumes"}, schema.GroupKind{Kind: "PersistentVolume"}
	why := errors.New("why")
	lost := func(err error) error { return &url.Error{Op: "Post", URL: "https://api/persistentvolumes", Err: err} }
	generic := func(code int) error { return apierrors.NewGenericServerResponse(code, "POST", r, "a", "", 0, true) }
	for name, test := range map[string]struct {
		err  error
		want Answer
	}{
		"no error": {nil, Done},

		"bad request":              {apierrors.NewBadRequest("why"), Refused},
		"unauthorized":             {apierrors.NewUnauthorized("why"), Busy},
		"forbidden":                {apierrors.NewForbidden(r, "a", why), Refused},
		"not found":                {apierrors.NewNotFound(r, "a"), Absent},
		"method not supported":     {apierrors.NewMethodNotSupported(r, "create"), Refused},
		"already exists":           {apierrors.NewAlreadyExists(r, "a"), Exists},
		"generated name conflicts": {apierrors.NewGenerateNameConflict(r, "a", 1), Exists},
		"conflict":                 {apierrors.NewConflict(r, "a", why), Conflict},
		"conflict of managers":     {apierrors.NewApplyConflict(nil, "why"), Conflict},
		"gone":                     {apierrors.FromObject(&metav1.Status{Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonGone}), Absent},
		"expired":                  {apierrors.NewResourceExpired("why"), Absent},
		"too large":                {apierrors.NewRequestEntityTooLargeError("why"), Refused},
		"invalid":                  {apierrors.NewInvalid(k, "a", nil), Refused},
		"too many requests":        {apierrors.NewTooManyRequests("later", 1), Busy},
		"too many requests, plain": {apierrors.NewTooManyRequestsError("later"), Busy},
		"internal error":           {apierrors.NewInternalError(why), Unknown},
		"service unavailable":      {apierrors.NewServiceUnavailable("why"), Unknown},
		"timeout":                  {apierrors.NewTimeoutError("slow", 1), Unknown},
		"timeout of the server":    {apierrors.NewServerTimeout(r, "create", 1), Unknown},
		"timeout of a kind":        {apierrors.NewServerTimeoutForKind(k, "create", 1), Unknown},

		"a proxy's 302":   {generic(http.StatusFound), Unknown},
		"a proxy's 400":   {generic(http.StatusBadRequest), Refused},
		"a proxy's 401":   {generic(http.StatusUnauthorized), Busy},
		"a proxy's 406":   {generic(http.StatusNotAcceptable), Refused},
		"a proxy's 408":   {generic(http.StatusRequestTimeout), Unknown},
		"a proxy's 409":   {generic(http.StatusConflict), Exists}, // so client-go reads it
		"a proxy's 415":   {generic(http.StatusUnsupportedMediaType), Refused},
		"a proxy's 429":   {generic(http.StatusTooManyRequests), Busy},
		"a proxy's 502":   {generic(http.StatusBadGateway), Unknown},
		"a proxy's 503":   {generic(http.StatusServiceUnavailable), Unknown},
		"a proxy's 504":   {generic(http.StatusGatewayTimeout), Unknown},
		"an empty status": {&apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure}}, Unknown},
		"a decoded body that is not a status": {apierrors.FromObject(&metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusTeapot,
		}), Refused},

		"the context's deadline":    {context.DeadlineExceeded, Unknown},
		"the context was canceled":  {lost(context.Canceled), Unknown},
		"connection refused":        {lost(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}), Unknown},
		"connection reset":          {lost(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), Unknown},
		"no answer":                 {lost(io.ErrUnexpectedEOF), Unknown},
		"no name":                   {lost(&net.DNSError{Err: "no such host", IsNotFound: true}), Unknown},
		"an answer that is no JSON": {errors.New("invalid character '<' looking for beginning of value"), Unknown},
	} {
		if have := Of(test.err); have != test.want {
			t.Errorf("%s: %s, want %s", name, have, test.want)
		}
		if test.err == nil {
			continue
		}
		if have := Of(fmt.Errorf("making a volume: %w", test.err)); have != test.want {
			t.Errorf("%s, wrapped: %s, want %s", name, have, test.want)
		}
	}
}

// TestNotDone asserts that only answers after which nothing was done say so.
func TestNotDone(t *testing.T) {
	for a, want := range map[Answer]bool{Unknown: false, Done: false, Exists: false, Conflict: false, Absent: true, Busy: true, Refused: true} {
		if a.NotDone() != want {
			t.Errorf("%s: %t, want %t", a, a.NotDone(), want)
		}
	}
}
