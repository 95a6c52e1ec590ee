package csi

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
)

// TestRegisterAgain asserts that the socket is made again, so that a kubelet registers the driver again. The kubelet's
// answer is passed on.
func TestRegisterAgain(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, diskv1alpha1.DriverName+"-reg.sock")
	said := make(chan bool, 1)
	r := NewRegistration(dir, "/csi.sock", func(registered bool) { said <- registered })
	go func() { _ = r.Run(t.Context()) }()

	info := func() {
		got, err := registration.NewRegistrationClient(dial(t, socket)).GetInfo(t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true))
		if err != nil || got.GetName() != diskv1alpha1.DriverName || got.GetEndpoint() != "/csi.sock" {
			t.Fatalf("the kubelet gets %v, %v", got, err)
		}
	}
	info()
	first, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	r.RegisterAgain()
	testenv.Eventually(t, "making the socket again", func() error {
		if isSameSocket(socket, first) {
			return errors.New("it is still the first one")
		}
		return nil
	})
	info()
	for _, registered := range []bool{true, false} {
		_, err := registration.NewRegistrationClient(dial(t, socket)).NotifyRegistrationStatus(t.Context(),
			&registration.RegistrationStatus{PluginRegistered: registered, Error: "on purpose"}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		if got := testenv.Receive(t, "what the kubelet reports", said); got != registered {
			t.Errorf("registered %v is passed on as %v", registered, got)
		}
	}
}

// isSameSocket reports whether the socket is still that file. The number of an inode may be used again.
func isSameSocket(socket string, as os.FileInfo) bool {
	now, err := os.Stat(socket)
	return err == nil && os.SameFile(as, now) && as.ModTime().Equal(now.ModTime())
}
