package kubectl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/whatif"
)

// fitOptions are the flags of `fit`.
type fitOptions struct {
	class, size, headroom, spread, node, like string
	count                                     int
}

func newFit(s *session) *cobra.Command {
	var o fitOptions
	form := newDocumentOutput()
	cmd := &cobra.Command{
		Use:   "fit --class CLASS --size SIZE",
		Short: "Say where volumes would fit now, and how many",
		Long: "Say where volumes would fit now, and how many.\n\n" +
			"The volumes are those of one pod: all of them must fit on one node. Only disks count, not taints or other resources of the nodes. " +
			"With --like it is asked for a pod like one that exists, and all that its scheduling depends on counts.",
		Example: "  kubectl berth fit --class ssd --size 200Gi --count 3 --spread disk\n  kubectl berth fit --class ssd --size 500Gi --headroom 250Gi --node node-07\n  kubectl berth fit --like kafka-0 -n db",
		Args:    cobra.NoArgs,
		RunE: s.connected(func(ctx context.Context, a *api, _ []string) error {
			ask := s.fit
			if o.like != "" {
				ask = s.fitLike
			}
			d, err := ask(ctx, a, &o)
			if err != nil {
				return err
			}
			return form.writeDocument(s.Out, d)
		}),
	}
	cmd.Flags().StringVar(&o.class, "class", "", "The DiskClass of the volumes.")
	cmd.Flags().StringVar(&o.size, "size", "", "The size of each volume, such as 200Gi.")
	cmd.Flags().StringVar(&o.headroom, "headroom", "", "What must be free behind each volume, such as 100Gi.")
	cmd.Flags().IntVar(&o.count, "count", 1, "How many volumes the pod has.")
	cmd.Flags().StringVar(&o.spread, "spread", "", "With disk, no two of the volumes share a disk.")
	cmd.Flags().StringVar(&o.node, "node", "", "Only this node.")
	cmd.Flags().StringVar(&o.like, "like", "", "A pod that exists: ask for another one like it, with new volumes.")
	form.add(cmd)
	s.completeClasses(cmd)
	_ = cmd.RegisterFlagCompletionFunc("node", s.completeNodes)
	_ = cmd.RegisterFlagCompletionFunc("spread", cobra.FixedCompletions([]string{diskv1alpha1.SpreadDisk}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// question reads the flags.
func (o *fitOptions) question() (whatif.Question, error) {
	q := whatif.Question{Class: o.class, Count: o.count, Node: o.node}
	switch {
	case o.class == "" || o.size == "":
		return q, errors.New("give --class and --size, or --like")
	case o.count < 1 || o.count > diskv1alpha1.MaxVolumes:
		return q, fmt.Errorf("--count is %d: it can be 1 to %d", o.count, diskv1alpha1.MaxVolumes)
	case o.spread != "" && o.spread != diskv1alpha1.SpreadDisk:
		return q, fmt.Errorf("--spread is %q: it can only be %q", o.spread, diskv1alpha1.SpreadDisk)
	}
	q.Apart = o.spread == diskv1alpha1.SpreadDisk
	// The plugin reads the sizes of pods the same way.
	attributes, err := diskv1alpha1.ParseAttributes(map[string]string{diskv1alpha1.AttributeSize: o.size, diskv1alpha1.AttributeClass: o.class})
	if err != nil {
		return q, fmt.Errorf("--size: %w", err)
	}
	q.Size = attributes.Size
	if o.headroom != "" {
		headroom, err := resource.ParseQuantity(o.headroom)
		if err != nil || headroom.Sign() < 0 || headroom.CmpInt64(diskv1alpha1.MaxVolumeSize) > 0 {
			return q, fmt.Errorf("--headroom is %q, which is not a size: write it like 100Gi", o.headroom)
		}
		q.Headroom = diskv1alpha1.AlignUp(headroom.Value())
	}
	return q, nil
}

func (s *session) fit(ctx context.Context, a *api, o *fitOptions) (*document, error) {
	q, err := o.question()
	if err != nil {
		return nil, err
	}
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	scheduler, objects, err := a.scheduler(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := scheduler.Fit(q)
	if err != nil {
		return nil, err
	}
	devices := namesOfDisks(objects.Capacities)
	var b strings.Builder
	switch {
	case answer.Nodes == 0:
		fmt.Fprintf(&b, "No node has a disk of class %s in service.\n", q.Class)
	case len(answer.Fits) == 0:
		fmt.Fprintf(&b, "Fits on none of %s with disks of class %s.\n", plural(answer.Nodes, "node"), q.Class)
	default:
		fmt.Fprintf(&b, "Fits on %d of %s. By its disks the best is %s:\n", len(answer.Fits), plural(answer.Nodes, "node"), answer.Fits[0].Node)
		writePlan(&b, to, &answer.Fits[0], devices, nil)
		b.WriteString(howMany(answer.Pods) + "\n")
	}
	writeRefusals(&b, to, answer.Refused, len(answer.Fits) > 0)
	value := fitDocument{
		Class: q.Class, Size: q.Size, Headroom: q.Headroom, Count: q.Count, Spread: o.spread, Pods: &answer.Pods,
		verdictItem: verdictItem{Nodes: answer.Nodes, Fits: fitItems(answer.Fits, devices, nil), Refused: refusalItems(answer.Refused)},
	}
	return &document{kind: kindFit, name: q.Class, value: value, text: b.String()}, nil
}

// howMany says how many such pods have room.
func howMany(pods int) string {
	switch {
	case pods == 1:
		return "There is room for one such pod."
	case pods >= whatif.MaxPods:
		return fmt.Sprintf("There is room for %d such pods and more, one after the other.", whatif.MaxPods)
	}
	return fmt.Sprintf("There is room for %d such pods, one after the other.", pods)
}

// fitLike asks for another pod like one that exists.
func (s *session) fitLike(ctx context.Context, a *api, o *fitOptions) (*document, error) {
	namespace, _, err := s.config.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, err
	}
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	pod, err := a.core.CoreV1().Pods(namespace).Get(ctx, o.like, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading pod %s/%s: %w", namespace, o.like, err)
	}
	objects, err := a.objects(ctx)
	if err != nil {
		return nil, err
	}
	like, err := objects.Like(pod)
	if err != nil {
		return nil, err
	}
	scheduler, err := whatif.New(ctx, objects)
	if err != nil {
		return nil, err
	}
	v := scheduler.Pod(ctx, like)
	var b strings.Builder
	switch {
	case v.Invalid != "":
		fmt.Fprintf(&b, "No node can take another pod like %s/%s: %s.\n", namespace, o.like, v.Invalid)
	case len(v.Fits) == 0:
		fmt.Fprintf(&b, "Another pod like %s/%s fits on none of %s.\n", namespace, o.like, plural(v.Nodes, "node"))
	default:
		fmt.Fprintf(&b, "Another pod like %s/%s fits on %d of %s. By its disks the best is %s:\n", namespace, o.like, len(v.Fits), plural(v.Nodes, "node"), v.Fits[0].Node)
		writePlan(&b, to, &v.Fits[0], namesOfDisks(objects.Capacities), wantNames(v.Wants))
	}
	writeWants(&b, to, pod, v.Wants)
	writeRefusals(&b, to, v.Refused, len(v.Fits) > 0)
	value := fitDocument{Like: namespace + "/" + o.like, verdictItem: verdictOf(v, namesOfDisks(objects.Capacities))}
	return &document{kind: kindFit, name: value.Like, value: value, text: b.String()}, nil
}
