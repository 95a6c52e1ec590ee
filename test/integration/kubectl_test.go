package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// operator runs kubectl berth as a user who has the ClusterRole berth-operator, and nothing else.
type operator struct{ *node }

// newOperator gives the user of the node's test the role.
func newOperator(n *node) operator {
	n.t.Helper()
	if err := n.plane.Apply(n.t.Context(), "config/rbac/kubectl.yaml"); err != nil {
		n.t.Fatal(err)
	}
	n.create(&rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: n.name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "berth-operator"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: n.name}},
	})
	return operator{n}
}

// try runs a command line.
func (o operator) try(ctx context.Context, line string) (string, error) {
	var out, errOut bytes.Buffer
	args := append([]string{"kubectl-berth"}, strings.Fields(line)...)
	args = append(args, "--kubeconfig", o.plane.Kubeconfig(), "--as", o.name)
	code := kubectl.Run(ctx, args, genericiooptions.IOStreams{In: new(bytes.Buffer), Out: &out, ErrOut: &errOut})
	o.t.Logf("$ kubectl berth %s\n%s%s", line, out.String(), errOut.String())
	if code != 0 {
		return out.String(), fmt.Errorf("code %d: %s", code, errOut.String())
	}
	return out.String(), nil
}

// run runs a command line that must work and print something.
func (o operator) run(line, says string) {
	o.t.Helper()
	if out, err := o.try(o.t.Context(), line); err != nil || !strings.Contains(out, says) {
		o.t.Fatalf("kubectl berth %s: %v, no %q in %s", line, err, says, out)
	}
}

// state waits until a disk is published in a state.
func (o operator) state(d *testDisk, state diskv1alpha1.DiskState) {
	o.t.Helper()
	o.published(fmt.Sprintf("%s is %s", d.path, state), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if have := of(s, d).State; have != state {
			return fmt.Errorf("it is %s", have)
		}
		return nil
	})
}

// TestKubectlDisks asserts that an operator approves devices, and cordons, drains and forgets disks, with the rights
// of berth-operator alone. The agent does what was asked for.
func TestKubectlDisks(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(class, func() { class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptApprove, nil })
	first, second := n.disks[0], n.disks[1]
	links := []string{n.link(first), n.link(second)}
	o := newOperator(n)
	n.start()
	n.deviceIs(first, diskv1alpha1.DeviceCandidate, "waits for approval")
	n.deviceIs(second, diskv1alpha1.DeviceCandidate, "waits for approval")

	o.run("adopt --class "+n.name, first.name())
	o.run(fmt.Sprintf("adopt %s:%s --dry-run=server", n.name, links[0]), "nothing was changed")
	if _, err := o.try(t.Context(), fmt.Sprintf("adopt %s:%s", n.name, links[0])); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("without a terminal: %v", err)
	}
	n.deviceIs(first, diskv1alpha1.DeviceCandidate, "waits for approval")
	o.run(fmt.Sprintf("adopt %s:%s --class %s --yes --wait", n.name, links[0], n.name), "in service")
	n.deviceIs(first, diskv1alpha1.DeviceInUse, "")
	o.run(fmt.Sprintf("adopt %s/%s --yes --wait", n.name, second.name()), "in service")
	status := n.ready()
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	if adopt := ndc.Spec.Adopt; len(adopt) != 2 || adopt[0].ByID != links[0] || adopt[1].ByID != links[1] || adopt[0].ApprovedBy != n.name {
		t.Errorf("spec.adopt is %+v", adopt)
	}

	disk := of(&status, first).ID
	o.run(fmt.Sprintf("cordon %s %s --dry-run=server", n.name, disk[:13]), "nothing was changed")
	o.run(fmt.Sprintf("cordon %s %s --yes", n.name, disk[:13]), "Cordoned")
	o.run(fmt.Sprintf("cordon %s %s --yes", n.name, second.name()), "Cordoned")
	o.state(first, diskv1alpha1.DiskCordoned)
	o.state(second, diskv1alpha1.DiskCordoned)
	o.run(fmt.Sprintf("uncordon %s/%s --yes", n.name, first.name()), "Uncordoned")
	o.state(first, diskv1alpha1.DiskReady)
	o.state(second, diskv1alpha1.DiskCordoned)

	pod := n.pod("user", "", nil, n.volumeOf("data", "100Mi", ""))
	if err := n.publish(pod, "data"); err != nil {
		t.Fatal(err)
	}
	n.formatted(pod, "data")
	o.run(fmt.Sprintf("drain %s %s --yes --reason test", n.name, first.name()), "ends with its pod")
	o.state(first, diskv1alpha1.DiskDraining)
	drained := make(chan error, 1)
	go func() {
		out, err := o.try(t.Context(), fmt.Sprintf("drain %s %s --wait --timeout 1m", n.name, first.name()))
		if err == nil && !strings.Contains(out, "nothing is left on it") {
			err = errors.New(out)
		}
		drained <- err
	}()
	n.unpublish(pod, "data")
	n.delete(pod)
	n.eventually("the command sees that the disk is drained", func() error {
		select {
		case err := <-drained:
			if err != nil {
				t.Fatal(err)
			}
			return nil
		default:
			return errors.New("it waits")
		}
	})
	o.run(fmt.Sprintf("drain %s %s --undo --yes", n.name, first.name()), "Ended the drain")
	o.state(first, diskv1alpha1.DiskReady)

	forget := fmt.Sprintf("forget %s %s --yes-lose-data", n.name, disk)
	if _, err := o.try(t.Context(), forget); err == nil || !strings.Contains(err.Error(), "only a disk that is gone can be forgotten") {
		t.Errorf("a disk in service: %v", err)
	}
	n.sys.hide(t, first, true)
	o.state(first, diskv1alpha1.DiskFailed)
	o.run(forget, "Annotated")
	n.published("the disk is forgotten", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 1 || s.Disks[0].Device != second.name() {
			return fmt.Errorf("there are %d disks", len(s.Disks))
		}
		return nil
	})
}

// TestKubectlOrphans asserts that a volume that has lost its PersistentVolume is taken back with its data, and that one
// that is given up is wiped.
func TestKubectlOrphans(t *testing.T) {
	n := newNode(t, units.GiB)
	n.create(objects.StorageClass(n.name, n.name))
	o := newOperator(n)
	d := n.startReady()
	pv := n.bound("data", "100Mi", corev1.PersistentVolumeFilesystem, d, diskv1alpha1.Alignment*10)
	n.realized(pv)
	lose := func() {
		n.strip(pv)
		n.published("the volume is an orphan", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
			if _, a, found := held(s, pv); !found || a.OrphanedSince == nil {
				return fmt.Errorf("it is %+v", a)
			}
			return nil
		})
	}
	lose()
	o.run("orphans "+n.name, pv.Name)
	// The claim exists: the volume is not given up.
	if _, err := o.try(t.Context(), "orphans release "+pv.Name+" --yes-lose-data"); err == nil || !strings.Contains(err.Error(), "still exists") {
		t.Errorf("a volume whose claim exists: %v", err)
	}
	owner := pv.Spec.ClaimRef.Namespace + "/" + pv.Spec.ClaimRef.Name
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name}}
	n.strip(pvc)

	o.run("orphans adopt "+pv.Name+" --yes --dry-run=server", "nothing was changed")
	o.run("orphans adopt "+pv.Name+" --yes", "reserved for claim "+owner)
	n.published("the volume is no orphan", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if _, a, found := held(s, pv); !found || a.OrphanedSince != nil || a.Phase != diskv1alpha1.PhaseFormatted {
			return fmt.Errorf("it is %+v", a)
		}
		return nil
	})
	lose()
	o.run("orphans release "+pv.Name+" --yes-lose-data", "wipes the volume")
	n.released()
	n.strip(pv)
}
