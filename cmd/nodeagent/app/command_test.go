package app

import (
	"testing"

	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// TestKubeletDir asserts that the sockets follow the kubelet's folder unless they are given.
func TestKubeletDir(t *testing.T) {
	for _, tc := range []struct {
		arguments            []string
		socket, registration string
	}{
		{nil, "/var/lib/kubelet/plugins/disk.berth.dev/csi.sock", "/var/lib/kubelet/plugins_registry"},
		{[]string{"--kubelet-dir=/var/lib/k0s/kubelet"}, "/var/lib/k0s/kubelet/plugins/disk.berth.dev/csi.sock", "/var/lib/k0s/kubelet/plugins_registry"},
		{[]string{"--kubelet-dir=/k", "--csi-socket=/a", "--registration-dir=/b"}, "/a", "/b"},
	} {
		f := parse(t, tc.arguments...)
		if err := f.validate(); err != nil {
			t.Errorf("%v: %v", tc.arguments, err)
		}
		if f.agent.CSISocket != tc.socket || f.agent.RegistrationDir != tc.registration {
			t.Errorf("%v: %s and %s", tc.arguments, f.agent.CSISocket, f.agent.RegistrationDir)
		}
	}
	if err := parse(t, "--kubelet-dir=kubelet").validate(); err == nil {
		t.Error("a relative folder is accepted")
	}
}

func parse(t *testing.T, arguments ...string) *flags {
	t.Helper()
	f := &flags{logs: logsapi.NewLoggingConfiguration()}
	fs := pflag.NewFlagSet("nodeagent", pflag.ContinueOnError)
	f.add(fs)
	if err := fs.Parse(append(arguments, "--node-name=n")); err != nil {
		t.Fatal(err)
	}
	return f
}
