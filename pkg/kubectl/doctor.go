package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	labelselection "k8s.io/apimachinery/pkg/selection"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

func newDoctor(s *session) *cobra.Command {
	form := newDocumentOutput()
	cmd := &cobra.Command{
		Use:   "doctor [NODE]",
		Short: "Check Berth's programs, nodes, disks, volumes and classes, and say what to do",
		Long: "Check Berth's programs, nodes, disks, volumes and classes, and say what to do.\n\n" +
			"With a node only that node is checked. If something is wrong, the exit code is 2. " +
			"What the user has no right to read is not checked, and is no finding.",
		Example:           "  kubectl berth doctor\n  kubectl berth doctor node-29",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: s.completeNodes,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			return s.doctor(ctx, a, form, strings.Join(args, ""))
		}),
	}
	form.add(cmd)
	return cmd
}

// diagnosis is a document: what the checks found.
type diagnosis struct {
	Findings int         `json:"findings"`
	Checks   []groupItem `json:"checks"`
}

// groupItem is the checks of one kind.
type groupItem struct {
	Of      string       `json:"of"`
	Results []remarkItem `json:"results"`
}

// checkGroup is the results of the checks of one kind.
type checkGroup struct {
	heading string
	results []remark
}

// isFinding reports whether an operator must act.
func (r *remark) isFinding() bool {
	return r.mark == terminal.MarkBad || r.mark == terminal.MarkWarning
}

// doctor prints what the checks say.
func (s *session) doctor(ctx context.Context, a *api, form *output, node string) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	e, err := a.examine(ctx)
	if err != nil {
		return err
	}
	if node != "" && !e.knows(node) {
		return fmt.Errorf("there is neither a Node nor a NodeDiskCapacity %s", node)
	}
	groups := []checkGroup{
		{"PROGRAMS", e.checkPrograms(node)},
		{"NODES", e.checkNodes(node)},
		{"DISKS AND VOLUMES", e.checkDisks(s.now(), node)},
	}
	if node == "" {
		groups = append(groups, checkGroup{"CLASSES", e.checkClasses(s.classRows(e.fleet, e.classes))})
	}
	var b strings.Builder
	value := diagnosis{}
	for _, g := range groups {
		writeLinesOf(&b, to, g.heading, g.results, true)
		value.Checks = append(value.Checks, groupItem{strings.ToLower(g.heading), remarkItems(g.results)})
		for i := range g.results {
			if g.results[i].isFinding() {
				value.Findings++
			}
		}
	}
	says := "All is well.\n"
	if value.Findings > 0 {
		says = plural(value.Findings, "finding") + ".\n"
	}
	d := &document{kind: "Diagnosis", name: clusterName, value: value, text: strings.TrimPrefix(b.String(), "\n") + "\n" + says}
	if node != "" {
		d.name = node
	}
	if err := form.writeDocument(s.Out, d); err != nil {
		return err
	}
	if value.Findings > 0 {
		return errNeedsOperator
	}
	return nil
}

// examination is what `doctor` reads. What the user may not read is nil, and its name is in unread.
type examination struct {
	*overview
	resources      []string
	nodeObjects    []corev1.Node
	programs       []corev1.Pod
	storageClasses []storagev1.StorageClass
	driver         *storagev1.CSIDriver
	policies       []admissionv1.ValidatingAdmissionPolicy
	bindings       []admissionv1.ValidatingAdmissionPolicyBinding
	unread         map[string]bool
}

// Names of what a user may lack the right to read.
const (
	ofDrivers  = "CSIDrivers"
	ofPolicies = "ValidatingAdmissionPolicies"
)

// examine reads what the checks need.
func (a *api) examine(ctx context.Context) (*examination, error) {
	e := &examination{unread: map[string]bool{}}
	var driverErr, policiesErr error
	group, groupCtx := errgroup.WithContext(ctx)
	read := func(do func(context.Context) error) { group.Go(func() error { return do(groupCtx) }) }
	read(func(ctx context.Context) (err error) { e.overview, err = a.overview(ctx); return err })
	read(func(ctx context.Context) (err error) { e.nodeObjects, err = a.nodeObjects(ctx); return err })
	read(func(ctx context.Context) (err error) { e.storageClasses, err = a.storageClasses(ctx); return err })
	read(func(ctx context.Context) (err error) { e.programs, err = a.programs(ctx); return err })
	read(func(context.Context) (err error) { e.resources, err = a.served(); return err })
	read(func(ctx context.Context) error {
		e.driver, driverErr = a.core.StorageV1().CSIDrivers().Get(ctx, diskv1alpha1.DriverName, metav1.GetOptions{})
		return unlessDenied(driverErr)
	})
	read(func(ctx context.Context) error {
		var policies *admissionv1.ValidatingAdmissionPolicyList
		var bindings *admissionv1.ValidatingAdmissionPolicyBindingList
		policies, policiesErr = a.core.AdmissionregistrationV1().ValidatingAdmissionPolicies().List(ctx, metav1.ListOptions{})
		if policiesErr == nil {
			bindings, policiesErr = a.core.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().List(ctx, metav1.ListOptions{})
		}
		if policiesErr == nil {
			e.policies, e.bindings = policies.Items, bindings.Items
		}
		return unlessDenied(policiesErr)
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	e.unread[ofDrivers], e.unread[ofPolicies] = apierrors.IsForbidden(driverErr), apierrors.IsForbidden(policiesErr)
	if driverErr != nil {
		e.driver = nil
	}
	return e, nil
}

// errNotPublished stands for the NodeDiskCapacity that a node lacks.
var errNotPublished = errors.New("the node has no NodeDiskCapacity")

// unlessDenied passes an error on, unless it says that the object does not exist or may not be read.
func unlessDenied(err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// served are the resources of Berth's API that the API server has.
func (a *api) served() ([]string, error) {
	list, err := a.core.Discovery().ServerResourcesForGroupVersion(diskv1alpha1.SchemeGroupVersion.String())
	if err != nil {
		return nil, unlessDenied(err)
	}
	var names []string
	for i := range list.APIResources {
		names = append(names, list.APIResources[i].Name)
	}
	return names, nil
}

// programs are the pods of the agents and of the scheduler.
func (a *api) programs(ctx context.Context) ([]corev1.Pod, error) {
	is, err := labels.NewRequirement(nameLabel, labelselection.In, []string{agentName, schedulerName})
	if err != nil {
		return nil, err
	}
	list, err := a.core.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: labels.NewSelector().Add(*is).String()})
	if err != nil {
		return nil, wrapList("pods", err)
	}
	return list.Items, nil
}

// knows reports whether there is a node of that name.
func (e *examination) knows(node string) bool {
	return e.exist[node] || slices.ContainsFunc(e.nodes, func(ndc diskv1alpha1.NodeDiskCapacity) bool { return ndc.Name == node })
}
