package kubectl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// fieldManager is the name of the program in the managed fields of what it writes.
const fieldManager = "kubectl-berth"

// Values of --dry-run.
const (
	dryRunNone   = "none"
	dryRunServer = "server"
)

// errNotConfirmed is returned when the user has answered no.
var errNotConfirmed = errors.New("nothing was changed")

// change is the flags of a command that writes.
type change struct {
	yes    bool
	dryRun string
	// flag is what answers the question beforehand. It names what is lost, if something is.
	flag string
}

// add adds the flags. Where data is lost, the flag that answers the question says so.
func (c *change) add(cmd *cobra.Command, losesData bool) {
	if losesData {
		c.flag = "yes-lose-data"
		cmd.Flags().BoolVar(&c.yes, c.flag, false, "Do not ask: the data may be lost.")
	} else {
		c.flag = "yes"
		cmd.Flags().BoolVarP(&c.yes, c.flag, "y", false, "Do not ask.")
	}
	cmd.Flags().StringVar(&c.dryRun, "dry-run", dryRunNone, "With server, the API server checks the change and does not store it; none stores it.")
	cmd.Flags().Lookup("dry-run").NoOptDefVal = dryRunServer
	_ = cmd.RegisterFlagCompletionFunc("dry-run", cobra.FixedCompletions([]string{dryRunNone, dryRunServer}, cobra.ShellCompDirectiveNoFileComp))
}

// check refuses values that --dry-run does not have: a mistake must not change anything.
func (c *change) check() error {
	if c.dryRun != dryRunNone && c.dryRun != dryRunServer {
		return fmt.Errorf("--dry-run is %q: it can be %s or %s", c.dryRun, dryRunNone, dryRunServer)
	}
	return nil
}

func (c *change) isDryRun() bool { return c.dryRun == dryRunServer }

// servers is the option of a request.
func (c *change) servers() []string {
	if c.isDryRun() {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// suffix ends the line that says what was done.
func (c *change) suffix() string {
	if c.isDryRun() {
		return " (server dry run: nothing was changed)"
	}
	return ""
}

// confirm says what will be done, and asks whether it shall be. Without a terminal to ask, the flag must be given.
func (c *change) confirm(ctx context.Context, s *session, plan string) error {
	if _, err := fmt.Fprint(s.Out, plan); err != nil {
		return err
	}
	if c.yes || c.isDryRun() {
		return nil
	}
	if !s.asks() {
		return fmt.Errorf("there is no terminal to ask: give --%s, or --dry-run=server to see what would be done; %w", c.flag, errNotConfirmed)
	}
	fmt.Fprint(s.ErrOut, "Go on? [y/N] ")
	answers := make(chan string, 1)
	go func() {
		// Without an answer there is none that says yes.
		answer, _ := bufio.NewReader(s.In).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case <-ctx.Done():
		// The user has interrupted the program: the read does not end.
		return errNotConfirmed
	case answer := <-answers:
		if answer != "y" && answer != "yes" {
			return errNotConfirmed
		}
		return nil
	}
}

// asks reports whether the user can be asked.
func (s *session) asks() bool {
	if s.interactive {
		return true
	}
	file, ok := s.In.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// editSpec changes the spec of a node's NodeDiskCapacity. decide changes what it gets, and reports whether something is
// to be written. It is called again, with the object as it is by then, if another client has written meanwhile: so it
// must look for its disk or device in it, and must not rely on what was read before.
func (a *api) editSpec(ctx context.Context, node string, c *change, decide func(*diskv1alpha1.NodeDiskCapacity) (bool, error)) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		ndc, err := a.capacity(ctx, node)
		if err != nil {
			return err
		}
		if err := a.checkKnown(ctx, node); err != nil {
			return err
		}
		wanted := ndc.DeepCopy()
		changed, err := decide(wanted)
		if err != nil || !changed {
			return err
		}
		// A merge patch replaces a list. With the resource version it is refused if the list is another one by now.
		spec := map[string]any{}
		if !apiequality.Semantic.DeepEqual(ndc.Spec.Disks, wanted.Spec.Disks) {
			spec["disks"] = wanted.Spec.Disks
		}
		if !apiequality.Semantic.DeepEqual(ndc.Spec.Adopt, wanted.Spec.Adopt) {
			spec["adopt"] = wanted.Spec.Adopt
		}
		written, err := a.patch(ctx, node, c, map[string]any{"metadata": map[string]any{"resourceVersion": ndc.ResourceVersion}, "spec": spec})
		if err != nil {
			return err
		}
		if !apiequality.Semantic.DeepEqual(written.Spec, wanted.Spec) {
			return fmt.Errorf("the API server has left out a part of spec of NodeDiskCapacity %s: its CRDs are older than this program. Apply those of this version (config/crd), and try again", node)
		}
		return nil
	})
}

// patch merges a change into the NodeDiskCapacity of a node, and returns the object as it is then.
func (a *api) patch(ctx context.Context, node string, c *change, changes map[string]any) (*diskv1alpha1.NodeDiskCapacity, error) {
	body, err := json.Marshal(changes)
	if err != nil {
		return nil, err
	}
	var written diskv1alpha1.NodeDiskCapacity
	options := &metav1.PatchOptions{FieldManager: fieldManager, DryRun: c.servers()}
	err = a.berth.Patch(types.MergePatchType).Resource(capacities).Name(node).VersionedParams(options, metav1.ParameterCodec).Body(body).Do(ctx).Into(&written)
	if err != nil {
		return nil, fmt.Errorf("changing NodeDiskCapacity %s: %w", node, err)
	}
	return &written, nil
}

// checkKnown refuses to change a spec with fields that this program does not know: writing the lists would remove them.
func (a *api) checkKnown(ctx context.Context, node string) error {
	raw, err := a.berth.Get().Resource(capacities).Name(node).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("reading NodeDiskCapacity %s: %w", node, err)
	}
	var object struct{ Spec json.RawMessage }
	if err := json.Unmarshal(raw, &object); err != nil || len(object.Spec) == 0 {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(object.Spec))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(new(diskv1alpha1.NodeDiskCapacitySpec)); err != nil {
		return fmt.Errorf("spec of NodeDiskCapacity %s says what this program does not know: use kubectl-berth of the version of the CRDs; nothing was changed: %w", node, err)
	}
	return nil
}

// await reads a node's NodeDiskCapacity again after each change, until done is true or fails.
func (a *api) await(ctx context.Context, node string, done func(*diskv1alpha1.NodeDiskCapacity) (bool, error)) error {
	changes, err := a.changesOf(ctx, "metadata.name="+node)
	if err != nil {
		return err
	}
	defer changes.Stop()
	for {
		ndc, err := a.capacity(ctx, node)
		if err != nil {
			return err
		}
		if ended, err := done(ndc); err != nil || ended {
			return err
		}
		if err := nextChange(ctx, changes.ResultChan()); err != nil {
			return err
		}
	}
}

// nextChange returns after the next event that is about a change.
func nextChange(ctx context.Context, events <-chan watch.Event) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("it was not awaited: %w", ctx.Err())
		case event, ok := <-events:
			switch {
			case !ok:
				return errors.New("the watch of NodeDiskCapacities has ended")
			case event.Type != watch.Bookmark:
				return nil
			}
		}
	}
}
