package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// drainOptions are the flags of `drain`.
type drainOptions struct {
	evict, wait, undo bool
	reason            string
	timeout           time.Duration
}

func newDrain(s *session) *cobra.Command {
	var o drainOptions
	return s.newDiskCommand(diskCommand{
		use: "drain", short: "Have the volumes of a disk leave it",
		long: "Have the volumes of a disk leave it.\n\n" +
			"It takes no new volumes. Volumes of claims are moved to other disks of its class on the node while no pod uses them. " +
			"Inline volumes end with their pods. With --evict the pods are evicted, within their disruption budgets.",
		example: "  kubectl berth drain node-07 nvme1n1 --dry-run=server\n  kubectl berth drain node-07 nvme1n1 --evict --wait\n  kubectl berth drain node-07 nvme1n1 --undo",
		run: func(ctx context.Context, a *api, c *change, d *decisionAbout) error {
			if err := o.check(c); err != nil {
				return err
			}
			if o.undo {
				return s.undoDrain(ctx, a, c, d)
			}
			if err := s.drain(ctx, a, c, d, &o); err != nil || !o.wait {
				return err
			}
			return s.awaitDrain(ctx, a, &d.target, o.timeout)
		},
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&o.evict, "evict", false, "Evict the pods that use volumes of the disk, within their disruption budgets.")
			cmd.Flags().BoolVar(&o.wait, "wait", false, "Wait until nothing is left on the disk, and say what is waited for.")
			cmd.Flags().BoolVar(&o.undo, "undo", false, "End the drain. What has been moved stays where it is.")
			cmd.Flags().StringVar(&o.reason, "reason", "", "Why, for people: the status of the disk repeats it.")
			cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "With --wait, for how long; 0 for as long as it takes.")
		},
	})
}

func (o *drainOptions) check(c *change) error {
	switch {
	case o.undo && (o.evict || o.wait || o.reason != ""):
		return errors.New("--undo excludes --evict, --wait and --reason")
	case o.wait && c.isDryRun():
		return errors.New("--wait and --dry-run exclude each other: nothing is changed that could be awaited")
	case o.timeout != 0 && !o.wait:
		return errors.New("--timeout needs --wait")
	}
	return nil
}

func (o *drainOptions) mode() diskv1alpha1.DrainMode {
	if o.evict {
		return diskv1alpha1.DrainEvict
	}
	return diskv1alpha1.DrainMove
}

func (s *session) drain(ctx context.Context, a *api, c *change, d *decisionAbout, o *drainOptions) error {
	if d.disk == nil {
		return fmt.Errorf("node %s does not have disk %s any more: there is nothing to drain", d.node, d.id)
	}
	wanted := diskv1alpha1.DiskDrain{Mode: o.mode(), Reason: o.reason}
	if have := d.before.Drain; have != nil {
		wanted.Reason = cmp.Or(wanted.Reason, have.Reason)
		if *have == wanted {
			_, err := fmt.Fprintf(s.Out, "%s is being drained already, in mode %s: nothing was changed.\n", d.says(), wanted.Mode)
			return err
		}
	}
	plan, err := s.planDrain(ctx, a, d, o.evict)
	if err != nil {
		return err
	}
	has := fmt.Sprintf("with drain in mode %s", wanted.Mode)
	return s.confirmAndDecide(ctx, a, c, d, decision{plan, "Draining", has, func(w *diskv1alpha1.DiskDecision) { w.Drain = &wanted }})
}

func (s *session) undoDrain(ctx context.Context, a *api, c *change, d *decisionAbout) error {
	if d.before.Drain == nil {
		_, err := fmt.Fprintf(s.Out, "%s is not being drained: nothing was changed.\n", d.says())
		return err
	}
	plan := d.says() + " is not drained any more, and takes new volumes again. What has been moved stays where it is.\n"
	if d.before.Unschedulable {
		plan = d.says() + " is not drained any more. It stays cordoned. What has been moved stays where it is.\n"
	}
	return s.confirmAndDecide(ctx, a, c, d, decision{plan, "Ended the drain of", "without drain", func(w *diskv1alpha1.DiskDecision) { w.Drain = nil }})
}

// planDrain says what happens to each volume, by what is known now.
func (s *session) planDrain(ctx context.Context, a *api, d *decisionAbout, evict bool) (string, error) {
	to, err := s.terminal()
	if err != nil {
		return "", err
	}
	pods, err := a.pods(ctx, metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", d.node))
	known := !apierrors.IsForbidden(err)
	if err != nil && known {
		return "", err
	}
	var b strings.Builder
	if d.disk.VolumeCount() == 0 {
		b.WriteString(d.says() + " takes no new volumes from now on. It has none.\n")
		return b.String(), nil
	}
	fmt.Fprintf(&b, "%s takes no new volumes from now on, and its %s shall leave it:\n", d.says(), plural(d.disk.VolumeCount(), "volume"))
	room := roomBeside(d)
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{Right: true}, {Shrink: 16}, {}, {}}}
	for _, v := range d.disk.FirstPieces() {
		table.AddTexts(size(v.Whole()), ownerOf(v), kindOrState(v), leaves(v, usersOf(v, pods), room, known, evict))
	}
	_ = table.Write(&b, to)
	return b.String(), nil
}

// roomBeside is the largest free extent of the class on the other disks of the node.
func roomBeside(d *decisionAbout) int64 {
	var largest int64
	for _, other := range inventory.Disks(d.ndc, inventory.Context{Withheld: withheldOn(d.ndc)}) {
		if other.ID != d.id && other.Class == d.disk.Class {
			largest = max(largest, other.Largest)
		}
	}
	return largest
}

// usersOf are the pods that use a volume, if it is in use.
func usersOf(v *inventory.Volume, pods []corev1.Pod) []*corev1.Pod {
	var users []*corev1.Pod
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		namespace, name, _ := strings.Cut(v.Owner, "/")
		if p.Namespace == namespace && (v.Kind == inventory.KindInline && p.Name == name || v.Kind != inventory.KindInline && usesClaim(p, name)) {
			users = append(users, p)
		}
	}
	return users
}

// leaves says how a volume leaves a disk that is drained.
func leaves(v *inventory.Volume, users []*corev1.Pod, room int64, known, evict bool) string {
	switch {
	case v.State == string(diskv1alpha1.PhaseWiping):
		return "is being wiped"
	case v.State == inventory.StateOrphan && v.Kind != inventory.KindInline:
		return "stays: it has no PersistentVolume. See kubectl berth orphans"
	case v.Kind == inventory.KindInline:
		return "ends with its pod" + evicted(users, evict)
	case v.Kind == inventory.KindUnknown:
		return "stays: its node does not know whose it is"
	case room < v.Whole():
		return fmt.Sprintf("stays: no other disk has %s of its class in one piece, the most is %s", size(v.Whole()), size(room))
	case !known:
		return "is moved to another disk when no pod uses it"
	case len(users) == 0:
		return "is moved to another disk at once"
	}
	return fmt.Sprintf("is moved to another disk when pod %s/%s ends", users[0].Namespace, users[0].Name) + evicted(users, evict)
}

// evicted says whether the pods are evicted.
func evicted(users []*corev1.Pod, evict bool) string {
	for _, p := range users {
		switch {
		case !evict:
			return ""
		case metav1.GetControllerOf(p) == nil:
			return ", which has no controller and is not evicted: delete it"
		}
	}
	if len(users) > 0 && evict {
		return ", which is evicted"
	}
	return ""
}

// awaitDrain waits until nothing is left on the disk, and says what is waited for when that changes.
func (s *session) awaitDrain(ctx context.Context, a *api, t *target, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	last := ""
	err := a.await(ctx, t.node, func(ndc *diskv1alpha1.NodeDiskCapacity) (bool, error) {
		says, done, err := drainState(ndc, t)
		if err == nil && says != last {
			_, err = fmt.Fprintln(s.Out, says)
		}
		last = says
		return done, err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s is not drained after %v; the drain goes on. The last state: %s", t.path(), timeout, last)
	}
	return err
}

// drainState says how far a drain is.
func drainState(ndc *diskv1alpha1.NodeDiskCapacity, t *target) (says string, done bool, err error) {
	if ndc.Spec.Decision(t.id).Drain == nil {
		return "", false, fmt.Errorf("%s is not drained any more: another operator has ended it", t.path())
	}
	for i := range ndc.Status.Disks {
		disk := &ndc.Status.Disks[i]
		if disk.ID != t.id {
			continue
		}
		p := disk.Drain
		switch {
		case p == nil:
			return "The agent has not begun.", false, nil
		case p.Done:
			return t.path() + " is drained: nothing is left on it.", true, nil
		}
		lines := []string{fmt.Sprintf("%s, %s left", plural(int(p.Volumes), "volume"), size(p.Bytes))}
		if p.Volumes == 0 {
			lines[0] = "what was on it is being wiped"
		}
		for _, w := range p.Waiting {
			lines = append(lines, fmt.Sprintf("  %s: %s", w.Volume, w.Message))
		}
		return strings.Join(lines, "\n"), false, nil
	}
	return "", false, fmt.Errorf("node %s does not have disk %s any more", t.node, t.id)
}
