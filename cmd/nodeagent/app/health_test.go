package app

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAnswer asserts that a failed check is an error status for the kubelet, and that the body says what is wrong.
func TestAnswer(t *testing.T) {
	for want, err := range map[int]error{http.StatusOK: nil, http.StatusServiceUnavailable: errors.New("the disks are not published yet")} {
		w := httptest.NewRecorder()
		answer(func() error { return err })(w, httptest.NewRequest(http.MethodGet, "/readyz", http.NoBody))
		if w.Code != want || err != nil && !strings.Contains(w.Body.String(), err.Error()) {
			t.Errorf("with %v: %d %s", err, w.Code, w.Body.String())
		}
	}
}
