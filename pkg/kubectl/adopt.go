package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
)

// maxApprover bounds approvedBy in the API.
const maxApprover = 253

// adoptOptions are the flags of `adopt`.
type adoptOptions struct {
	change
	class   string
	wait    bool
	timeout time.Duration
}

func newAdopt(s *session) *cobra.Command {
	var o adoptOptions
	form := newOutput()
	cmd := &cobra.Command{
		Use:   "adopt [NODE:DEVICE]",
		Short: "Approve that a blank device becomes a disk of Berth",
		Long: "Approve that a blank device becomes a disk of Berth. Without a device the candidates are listed.\n\n" +
			"The device is named by its path below /dev/disk/by-id, its WWN, its serial number, or its name now. " +
			"The approval names it by what does not change with a reboot, and holds only while it is as it is now.",
		Example:           "  kubectl berth adopt\n  kubectl berth adopt node-43:/dev/disk/by-id/nvme-Amazon_EC2_AWS22F1C0 --class ssd\n  kubectl berth adopt node-43:nvme1n1 --wait",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completeCandidates,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if err := o.check(len(args) == 1); err != nil {
				return err
			}
			if len(args) == 0 {
				l, err := s.getDevices(ctx, a, &selection{classes: classList(o.class), states: []string{string(diskv1alpha1.DeviceCandidate)}})
				if err != nil {
					return err
				}
				l.none = "No device waits for approval: kubectl berth get devices says why each is taken or not."
				return form.write(s, l)
			}
			return s.adopt(ctx, a, &o, args[0])
		}),
	}
	form.add(cmd)
	o.add(cmd, false)
	cmd.Flags().StringVar(&o.class, "class", "", "The DiskClass that takes the device; without it the one that selects it.")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "Wait until the disk is in service.")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "With --wait, for how long.")
	s.completeClasses(cmd)
	return cmd
}

func (o *adoptOptions) check(withDevice bool) error {
	switch {
	case !withDevice && (o.yes || o.wait || o.isDryRun()):
		return errors.New("name the device to approve: kubectl berth adopt lists the candidates")
	case o.wait && o.isDryRun():
		return errors.New("--wait and --dry-run exclude each other: nothing is changed that could be awaited")
	case o.timeout <= 0:
		return fmt.Errorf("--timeout is %v: it must be longer than 0", o.timeout)
	}
	return o.change.check()
}

func classList(class string) []string {
	if class == "" {
		return nil
	}
	return []string{class}
}

// deviceArgument reads NODE:DEVICE or NODE/DEVICE.
func deviceArgument(arg string) (node, device string, err error) {
	node, device, found := strings.Cut(arg, ":")
	if !found {
		node, device = splitPath(arg)
	}
	if node == "" || device == "" {
		return "", "", fmt.Errorf("name the device as NODE:DEVICE, such as node-43:/dev/disk/by-id/...; kubectl berth adopt lists the candidates")
	}
	return node, device, nil
}

// findDevice finds the device with that path, WWN, serial number or name. A name for two devices is refused.
func findDevice(ndc *diskv1alpha1.NodeDiskCapacity, name string) (*inventory.Device, error) {
	devices := inventory.Devices(ndc)
	found := slices.DeleteFunc(slices.Clone(devices), func(d inventory.Device) bool {
		return d.Name != strings.TrimPrefix(name, "/dev/") && d.ByID != name && d.WWN != name && d.Serial != name
	})
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		return nil, fmt.Errorf("node %s has no device %q: it has %s", ndc.Name, name, listDevices(devices))
	}
	return nil, fmt.Errorf("node %s has %d devices that %q can mean: %s; name one by its path or WWN", ndc.Name, len(found), name, listDevices(found))
}

func listDevices(devices []inventory.Device) string {
	if len(devices) == 0 {
		return "none that could be a disk"
	}
	texts := make([]string, len(devices))
	for i := range devices {
		texts[i] = fmt.Sprintf("%s (%s, %s)", devices[i].Name, devices[i].State, joined(devices[i].ByID, devices[i].Identity()))
	}
	return strings.Join(texts, ", ")
}

// approvalOf approves a device by a property that no other device of the node has.
func approvalOf(ndc *diskv1alpha1.NodeDiskCapacity, d *inventory.Device, class, user string) (diskv1alpha1.DeviceApproval, error) {
	approval := diskv1alpha1.DeviceApproval{Class: class, Fingerprint: d.Fingerprint, ApprovedBy: user[:min(len(user), maxApprover)]}
	only := func(value string, of func(*diskv1alpha1.Device) string) bool {
		n := 0
		for i := range ndc.Status.Devices {
			if of(&ndc.Status.Devices[i]) == value {
				n++
			}
		}
		return value != "" && n == 1
	}
	switch {
	case only(d.WWN, func(x *diskv1alpha1.Device) string { return x.WWN }):
		approval.WWN = d.WWN
	case only(d.Serial, func(x *diskv1alpha1.Device) string { return x.Serial }):
		approval.Serial = d.Serial
	case only(d.ByID, func(x *diskv1alpha1.Device) string { return x.ByID }):
		approval.ByID = d.ByID
	default:
		return approval, fmt.Errorf("device %s has no WWN, serial number or path of its own by which it could be approved", d.Path())
	}
	return approval, nil
}

// checkCandidate refuses a device that waits for no approval.
func checkCandidate(d *inventory.Device) error {
	switch {
	case d.State == diskv1alpha1.DeviceInUse:
		return fmt.Errorf("device %s is a disk of Berth already, %s", d.Path(), d.Disk)
	case d.State != diskv1alpha1.DeviceCandidate || d.Fingerprint == "":
		return fmt.Errorf("device %s is %s, and cannot be approved: %s", d.Path(), d.State, strings.Join(d.Reasons, "; "))
	}
	return nil
}

func (s *session) adopt(ctx context.Context, a *api, o *adoptOptions, arg string) error {
	node, name, err := deviceArgument(arg)
	if err != nil {
		return err
	}
	ndc, err := a.capacity(ctx, node)
	if err != nil {
		return err
	}
	d, err := findDevice(ndc, name)
	if err != nil {
		return err
	}
	if err := checkCandidate(d); err != nil {
		return err
	}
	class := o.class
	if class == "" {
		class = d.Class
	}
	if err := a.checkClass(ctx, class, d); err != nil {
		return err
	}
	approval, err := approvalOf(ndc, d, class, a.user(ctx))
	if err != nil {
		return err
	}
	plan := fmt.Sprintf("Device %s (%s) becomes a disk of class %s. Its agent found it blank, and writes a partition table to it.\n",
		d.Path(), joined(d.Model, size(d.Size), string(d.Transport), d.Identity(), d.ByID), class)
	if err := o.confirm(ctx, s, plan); err != nil {
		return err
	}
	err = a.editSpec(ctx, node, &o.change, func(ndc *diskv1alpha1.NodeDiskCapacity) (bool, error) { return approve(ndc, d, approval) })
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.Out, "Approved %s: spec.adopt of NodeDiskCapacity %s has %s for class %s%s.\n", d.Path(), node, nameOf(&approval), class, o.suffix()); err != nil || !o.wait {
		return err
	}
	return s.awaitDisk(ctx, a, node, &approval, o.timeout)
}

// approve adds an approval, in place of an earlier one of the same device. The device must be as the user saw it.
func approve(ndc *diskv1alpha1.NodeDiskCapacity, d *inventory.Device, approval diskv1alpha1.DeviceApproval) (bool, error) {
	if !slices.ContainsFunc(ndc.Status.Devices, func(now diskv1alpha1.Device) bool {
		return approves(&approval, &now) && now.Fingerprint == approval.Fingerprint
	}) {
		return false, fmt.Errorf("device %s has changed meanwhile: look at it again, kubectl berth get devices --node %s", d.Path(), ndc.Name)
	}
	if slices.Contains(ndc.Spec.Adopt, approval) {
		return false, nil
	}
	ndc.Spec.Adopt = slices.DeleteFunc(ndc.Spec.Adopt, func(old diskv1alpha1.DeviceApproval) bool { return approves(&old, &d.Device) })
	ndc.Spec.Adopt = append(ndc.Spec.Adopt, approval)
	return true, nil
}

// checkClass refuses a DiskClass that does not exist.
func (a *api) checkClass(ctx context.Context, class string, d *inventory.Device) error {
	if class == "" {
		return fmt.Errorf("no DiskClass selects device %s: name one with --class", d.Path())
	}
	all, err := a.classes(ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	if !slices.Contains(names, class) {
		slices.Sort(names)
		return fmt.Errorf("DiskClass %q does not exist: there are %s", class, strings.Join(names, ", "))
	}
	return nil
}

// user is the name of the user, for approvedBy; empty if the API server does not say.
func (a *api) user(ctx context.Context) string {
	review, err := a.core.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	return review.Status.UserInfo.Username
}

// awaitDisk waits until the device is a disk in service.
func (s *session) awaitDisk(ctx context.Context, a *api, node string, approval *diskv1alpha1.DeviceApproval, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last := "it is not listed"
	err := a.await(ctx, node, func(ndc *diskv1alpha1.NodeDiskCapacity) (bool, error) {
		for i := range ndc.Status.Devices {
			d := &ndc.Status.Devices[i]
			if !approves(approval, d) {
				continue
			}
			last = joined(string(d.State), strings.Join(d.Reasons, "; "))
			if d.State == diskv1alpha1.DeviceInUse {
				_, err := fmt.Fprintf(s.Out, "%s/%s is disk %s: %s in service.\n", node, d.Name, d.Disk, size(d.Size))
				return true, err
			}
		}
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the device is not in service after %v: %s", timeout, last)
	}
	return err
}
