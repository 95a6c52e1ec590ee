// Package answer says what is known of a write to the API server by the error that it returned: whether it was done,
// was not done, or may have been. It is the only place where that is decided, so that the scheduler's plugins and
// controllers never disagree about the space that a write reserves.
//
// Reading an error wrongly costs one of two things. If "may have been done" is taken for "not done", the space of a
// volume that exists is given to another one. The other way round, space is withheld until the object is read again.
package answer

import (
	"errors"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Answer is what is known of a write.
type Answer int

const (
	// Unknown: it may have been done, or may be done yet. The answer was lost, came too late or is a failure of the
	// server, which can come after the write.
	Unknown Answer = iota
	// Done: there was no error.
	Done
	// Exists: it was to create an object, and there is one of that name. An earlier try may have made it.
	Exists
	// Conflict: the object is not as the write expects it. It may be the write itself, sent twice, that has changed it.
	Conflict
	// Absent: it was not done, there is no such object.
	Absent
	// Busy: it was not done, the server did not look at it. Later it may be done.
	Busy
	// Refused: it was not done, the server looked at it and turned it down, and would again.
	Refused
)

var names = [...]string{
	Unknown: "unknown", Done: "done", Exists: "exists", Conflict: "conflict", Absent: "absent", Busy: "busy", Refused: "refused",
}

// String is for logs and tests.
func (a Answer) String() string { return names[a] }

// NotDone reports whether surely nothing came of the write.
func (a Answer) NotDone() bool { return a == Absent || a == Busy || a == Refused }

// SettleAfter is the time after which a request that was sent has been served or given up. The API server ends each
// request after its --request-timeout, a minute by default, and with it the tries of etcd and webhooks. What an object
// is like by then says what came of a write whose answer is Unknown.
const SettleAfter = 5 * time.Minute

// Of reads the error that a write returned.
//
// An error without a status did not come from the server: a connection that broke, a context that ended. A status of
// 5xx may come after the write, such as that of a timeout, and proxies have their own.
//
// client-go repeats a request that was answered with Retry-After, and returns the last answer. So one that is Busy may
// in theory follow a try that was done. The reservation is then made again by what the watch shows.
func Of(err error) Answer {
	if err == nil {
		return Done
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return Unknown
	}
	switch code := status.Status().Code; {
	case code == http.StatusConflict && status.Status().Reason == metav1.StatusReasonAlreadyExists:
		return Exists
	case code == http.StatusConflict:
		return Conflict
	case code == http.StatusNotFound, code == http.StatusGone:
		return Absent
	case code == http.StatusTooManyRequests, code == http.StatusUnauthorized:
		return Busy
	case code == http.StatusRequestTimeout:
		return Unknown
	case code >= http.StatusBadRequest && code < http.StatusInternalServerError:
		return Refused
	}
	return Unknown
}
