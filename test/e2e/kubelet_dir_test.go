package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
)

// kubeletDir asserts that a kubelet with another folder works if the agent has that folder. An agent that would mount
// where the node does not see it reports that, and mounts and makes nothing.
func kubeletDir(e *tenant) {
	t := e.t
	pod := e.podOf("pod", volume("data", large, "64Mi", v1alpha1.FSTypeExt4))
	e.create(pod)
	e.ready(pod)
	e.isPartition(e.device(pod, "/data"), v1alpha1.FSTypeExt4, e.find(pod, "data"))
	mark := canary(e)
	e.write(pod, mark)
	before := e.on("grep /dev/loop /proc/mounts | sort")

	// The second exists on every node, for the sockets of device plugins. The third was a kubelet's once.
	const none, plugins, wrong = "/var/lib/none", "/var/lib/kubelet", "/var/lib/wrong"
	start := func(args ...string) error { return e.cluster.StartAgent(t.Context(), movedNode, args...) }
	for _, refused := range []struct {
		says  string
		begin func() error
	}{
		{"cannot find the kubelet's folder", func() error { return start("--kubelet-dir=" + none) }},
		{"is not the --root-dir of a kubelet", func() error { return start("--kubelet-dir=" + plugins) }},
		{"does not propagate to the host", func() error { return e.cluster.StartAgentApart(t.Context(), movedNode) }},
	} {
		if err := e.cluster.KillAgent(movedNode); err != nil {
			t.Fatal(err)
		}
		// The driver may still be registered when the agent ends, so both results are right.
		_ = refused.begin()
		e.eventually("the agent says: "+refused.says, func(context.Context) error { return e.logged(movedNode, refused.says) })
	}
	e.on("test ! -e " + none)
	if found := e.on("ls " + plugins); found != "device-plugins" {
		t.Errorf("in %s there is %s", plugins, found)
	}

	// The kubelet finds this one, and calls it.
	e.on("mkdir -p " + wrong + "/pods")
	sockets := []string{"--csi-socket=" + filepath.Join(movedRoot, "plugins", v1alpha1.DriverName, "csi.sock"), "--registration-dir=" + filepath.Join(movedRoot, "plugins_registry")}
	if err := errors.Join(e.cluster.KillAgent(movedNode), start(append(sockets, "--kubelet-dir="+wrong)...)); err != nil {
		t.Fatal(err)
	}
	inline := e.podOf("inline", volume("data", large, "64Mi", v1alpha1.FSTypeExt4))
	claim := e.claim("data", large, "64Mi")
	user := e.podOf("user", claimed("data", claim))
	e.make(claim)
	e.create(inline, user)
	e.event(inline, "FailedMount", "is not below the kubelet's folder", wrong, "--kubelet-dir")
	e.event(user, "FailedMount", "is not below the kubelet's folder", wrong, "--kubelet-dir")
	if after := e.on("grep /dev/loop /proc/mounts | sort"); after != before {
		t.Errorf("the mounts of the node were:\n%s\nthey are:\n%s", before, after)
	}
	if found := e.on("find " + wrong + " -mindepth 1"); found != wrong+"/pods" {
		t.Errorf("below %s there is %s", wrong, found)
	}
	for _, pod := range []string{string(inline.UID), string(user.UID)} {
		if found := e.on(fmt.Sprintf("find %s/pods/%s/volumes -mindepth 3 -name mount", movedRoot, pod)); found != "" {
			t.Errorf("in the folder of a pod whose volume is not mounted there is %s", found)
		}
	}

	if err := errors.Join(e.cluster.KillAgent(movedNode), start()); err != nil {
		t.Fatal(err)
	}
	e.ready(inline, user)
	e.isPartition(e.device(inline, "/data"), v1alpha1.FSTypeExt4, e.find(inline, "data"))
	e.isPartition(e.device(user, "/data"), v1alpha1.FSTypeExt4, e.findVolume(e.boundTo(claim)))
	e.holds(pod, mark)
}

// on runs a shell command on movedNode and returns its output.
func (e *tenant) on(command string) string {
	e.t.Helper()
	out, err := e.cluster.Exec(e.t.Context(), movedNode, "sh", "-c", command)
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// logged returns nil when the node's agent has logged the text.
func (e *tenant) logged(node, text string) error {
	log, err := os.ReadFile(filepath.Join(e.cluster.LogDir(), "agent-"+node+".log"))
	if err != nil {
		return err
	}
	if !strings.Contains(string(log), text) {
		return errors.New("it does not")
	}
	return nil
}
