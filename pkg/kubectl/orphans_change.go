package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/request"
)

// orphanAdoption is the flags of `orphans adopt`.
type orphanAdoption struct {
	change
	storageClass, volumeMode, accessMode, claim string
	anyClaim                                    bool
}

func newOrphansAdopt(s *session) *cobra.Command {
	var o orphanAdoption
	cmd := &cobra.Command{
		Use:   "adopt VOLUME",
		Short: "Take back a persistent volume, with its data",
		Long: "Take back a persistent volume, with its data.\n\n" +
			"It writes the volume's PersistentVolume again, with the policy Retain. It is reserved for the claim that the volume was made for. " +
			"A claim of that name gets the data, if its StorageClass, access mode and volume mode are the same. If it exists, its modes are taken.",
		Example: "  kubectl berth orphans adopt pvc-3e2d5782-f630-56a9-a8b4-adb45db3fd25\n  kubectl berth orphans adopt pvc-3e2d5782 --storage-class berth-ssd --claim db/data-0",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: s.completeOrphans,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return s.adoptOrphan(ctx, a, &o, args[0])
		}),
	}
	o.add(cmd, false)
	cmd.Flags().StringVar(&o.storageClass, "storage-class", "", "The StorageClass of the PersistentVolume. It is needed if there are several of the disk's class.")
	cmd.Flags().StringVar(&o.volumeMode, "volume-mode", "", "Filesystem (the default), or Block for a raw block volume. With the wrong one the volume is not served, and nothing is lost.")
	cmd.Flags().StringVar(&o.accessMode, "access-mode", "", "ReadWriteOnce (the default) or ReadWriteOncePod, as in the claim.")
	cmd.Flags().StringVar(&o.claim, "claim", "", "The claim that gets the volume, as namespace/name; without it the one that it was made for.")
	cmd.Flags().BoolVar(&o.anyClaim, "any-claim", false, "Reserve it for no claim: any that fits may get it.")
	_ = cmd.RegisterFlagCompletionFunc("volume-mode", cobra.FixedCompletions(volumeModes, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("access-mode", cobra.FixedCompletions(accessModes, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// Modes that volumes of Berth can have.
var (
	volumeModes = []string{string(corev1.PersistentVolumeFilesystem), string(corev1.PersistentVolumeBlock)}
	accessModes = []string{string(corev1.ReadWriteOnce), string(corev1.ReadWriteOncePod)}
)

func (o *orphanAdoption) check() error {
	namespace, name, _ := strings.Cut(o.claim, "/")
	switch {
	case o.claim != "" && o.anyClaim:
		return errors.New("--claim and --any-claim exclude each other")
	case o.claim != "" && (namespace == "" || name == ""):
		return fmt.Errorf("--claim is %q: write it as namespace/name", o.claim)
	case o.volumeMode != "" && !slices.Contains(volumeModes, o.volumeMode):
		return fmt.Errorf("--volume-mode is %q: it can be %s", o.volumeMode, strings.Join(volumeModes, " or "))
	case o.accessMode != "" && !slices.Contains(accessModes, o.accessMode):
		return fmt.Errorf("--access-mode is %q: it can be %s", o.accessMode, strings.Join(accessModes, " or "))
	}
	return o.change.check()
}

func newOrphansRelease(s *session) *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "release VOLUME",
		Short: "Have a persistent volume without PersistentVolume wiped",
		Long: "Have a persistent volume without PersistentVolume wiped. Its data is lost.\n\n" +
			"It writes the volume's PersistentVolume again, with the policy Delete, and deletes it. The agent then wipes the volume by the policy of its class.",
		Example: "  kubectl berth orphans release pvc-3e2d5782-f630-56a9-a8b4-adb45db3fd25",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: s.completeOrphans,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			return s.releaseOrphan(ctx, a, &c, args[0])
		}),
	}
	c.add(cmd, true)
	return cmd
}

func newOrphansConfirm(s *session) *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "confirm NODE NUMBER",
		Short: "Have the volumes wiped whose pods are gone, where reclaim is stopped",
		Long: "Have the volumes wiped whose pods are gone, where reclaim is stopped. Their data is lost.\n\n" +
			"NUMBER is how many they are. If they are more by then, the agent keeps all.",
		Example: "  kubectl berth orphans confirm node-21 23",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: s.completeNodes,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			number, err := strconv.Atoi(args[1])
			if err != nil || number < 1 {
				return fmt.Errorf("%q is not how many volumes they are: kubectl berth orphans %s says it", args[1], args[0])
			}
			return s.confirmOrphans(ctx, a, &c, args[0], number)
		}),
	}
	c.add(cmd, true)
	return cmd
}

// findOrphan finds the persistent volume without PersistentVolume with that ID, partition or beginning of one of them.
func (a *api) findOrphan(ctx context.Context, name string) (*orphan, error) {
	all, err := a.orphans(ctx, "")
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(o orphan) bool { return !isAdoptable(o.Volume) })
	found := slices.DeleteFunc(slices.Clone(all), func(o orphan) bool { return o.Name != name && o.Partition != name })
	if len(found) == 0 && len(strings.TrimPrefix(name, "pvc-")) >= leastID {
		found = slices.DeleteFunc(slices.Clone(all), func(o orphan) bool {
			return !strings.HasPrefix(o.Name, name) && !strings.HasPrefix(o.Name, "pvc-"+name) && !strings.HasPrefix(o.Partition, name)
		})
	}
	names := func(orphans []orphan) string {
		texts := make([]string, len(orphans))
		for i := range orphans {
			texts[i] = orphans[i].Name + " on " + orphans[i].Node
		}
		return strings.Join(texts, ", ")
	}
	switch {
	case len(found) == 1:
		return &found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%q can mean %d volumes: %s", name, len(found), names(found))
	case len(all) == 0:
		return nil, fmt.Errorf("there is no persistent volume without PersistentVolume, so none is %q", name)
	}
	return nil, fmt.Errorf("%q is no persistent volume without PersistentVolume: these are %s", name, names(all))
}

// checkOrphan refuses a volume that has a PersistentVolume by now, or is in several places.
func (a *api) checkOrphan(ctx context.Context, o *orphan) error {
	nodes, err := a.capacities(ctx)
	if err != nil {
		return err
	}
	places := 0
	for i := range nodes {
		for j := range nodes[i].Status.Disks {
			for _, allocation := range nodes[i].Status.Disks[j].Allocations {
				if allocation.Volume == o.Name {
					places++
				}
			}
		}
	}
	if places != 1 {
		return fmt.Errorf("volume %s is in %d places: write its PersistentVolume by nodeagent manifests, docs/operate/backup.md", o.Name, places)
	}
	volumes, err := a.volumes(ctx)
	if err != nil {
		return err
	}
	for i := range volumes {
		if volumes[i].Name == o.Name || claim.IsOurs(&volumes[i]) && volumes[i].Spec.CSI.VolumeHandle == o.Name {
			return fmt.Errorf("volume %s has PersistentVolume %s: it is no orphan, see kubectl berth explain pv %s", o.Name, volumes[i].Name, volumes[i].Name)
		}
	}
	return nil
}

// persistentVolume is the PersistentVolume of a volume, as far as its node knows it. The agent reads the file system
// from the volume.
func persistentVolume(o *orphan, class *storagev1.StorageClass, mode corev1.PersistentVolumeMode, ref *corev1.ObjectReference) *corev1.PersistentVolume {
	pvc := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &mode,
	}}
	wanted := request.Volume{ID: o.Name}
	wanted.Request.Class = o.Class
	pv := claim.NewVolume(pvc, class, wanted, o.Node, diskv1alpha1.Place{
		Disk: o.Disk, Extent: diskv1alpha1.Extent{Start: o.Start, Length: o.Length},
	})
	pv.Spec.ClaimRef = ref
	return pv
}

// claimReference names a claim without its UID, so that a claim that is made later gets the volume.
func claimReference(owner string) *corev1.ObjectReference {
	namespace, name, _ := strings.Cut(owner, "/")
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: name}
}

func (s *session) adoptOrphan(ctx context.Context, a *api, o *orphanAdoption, name string) error {
	found, err := a.findOrphan(ctx, name)
	if err != nil {
		return err
	}
	if err := a.checkOrphan(ctx, found); err != nil {
		return err
	}
	class, err := a.adoptingClass(ctx, o.storageClass, found.Class)
	if err != nil {
		return err
	}
	ref, err := a.chooseModes(ctx, o, found, class.Name)
	if err != nil {
		return err
	}
	reserved := "any claim of StorageClass " + class.Name + " that fits may get it"
	if ref != nil {
		reserved = "it is reserved for claim " + ref.Namespace + "/" + ref.Name
	}
	retain := corev1.PersistentVolumeReclaimRetain
	class = &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class.Name}, ReclaimPolicy: &retain, MountOptions: class.MountOptions}
	pv := persistentVolume(found, class, corev1.PersistentVolumeMode(o.volumeMode), ref)
	pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(o.accessMode)}
	plan := fmt.Sprintf("Volume %s (%s on %s/%s) gets its PersistentVolume again: StorageClass %s, %s, %s, policy Retain; %s.\n",
		found.Name, size(found.Length), found.Node, found.Device, class.Name, o.volumeMode, o.accessMode, reserved)
	if err := o.confirm(ctx, s, plan); err != nil {
		return err
	}
	if _, err := a.core.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{FieldManager: fieldManager, DryRun: o.servers()}); err != nil {
		return fmt.Errorf("making PersistentVolume %s: %w", pv.Name, err)
	}
	_, err = fmt.Fprintf(s.Out, "Made PersistentVolume %s%s.\n", pv.Name, o.suffix())
	return err
}

// chooseModes returns for which claim a volume is reserved; nil if for none. Modes that the user did not give are those
// of the claim, if it exists.
func (a *api) chooseModes(ctx context.Context, o *orphanAdoption, found *orphan, class string) (*corev1.ObjectReference, error) {
	owner := cmp.Or(o.claim, found.Owner)
	var ref *corev1.ObjectReference
	switch {
	case !o.anyClaim && owner == "":
		return nil, fmt.Errorf("it is not known for which claim volume %s was made: give --claim, or --any-claim", found.Name)
	case !o.anyClaim:
		pvc, err := a.adoptingClaim(ctx, owner, class)
		if err != nil {
			return nil, err
		}
		if pvc != nil && pvc.Spec.VolumeMode != nil {
			o.volumeMode = cmp.Or(o.volumeMode, string(*pvc.Spec.VolumeMode))
		}
		if pvc != nil && len(pvc.Spec.AccessModes) > 0 {
			o.accessMode = cmp.Or(o.accessMode, string(pvc.Spec.AccessModes[0]))
		}
		ref = claimReference(owner)
	}
	o.volumeMode = cmp.Or(o.volumeMode, string(corev1.PersistentVolumeFilesystem))
	o.accessMode = cmp.Or(o.accessMode, string(corev1.ReadWriteOnce))
	return ref, nil
}

// adoptingClass is the StorageClass with that name, or the only one of the disk's class.
func (a *api) adoptingClass(ctx context.Context, name, diskClass string) (*storagev1.StorageClass, error) {
	all, err := a.storageClasses(ctx)
	if err != nil {
		return nil, err
	}
	var fitting []*storagev1.StorageClass
	var names []string
	for i := range all {
		c := &all[i]
		if c.Provisioner != diskv1alpha1.DriverName {
			continue
		}
		names = append(names, c.Name)
		if c.Name == name || name == "" && c.Parameters[diskv1alpha1.AttributeClass] == diskClass {
			fitting = append(fitting, c)
		}
	}
	switch {
	case len(fitting) == 1:
		return fitting[0], nil
	case name != "":
		return nil, fmt.Errorf("--storage-class is %q: Berth's StorageClasses are %s", name, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%d StorageClasses are of DiskClass %q: give --storage-class, it can be %s", len(fitting), diskClass, strings.Join(names, ", "))
}

// adoptingClaim is the claim that shall get a volume; nil if it does not exist yet. One that could not get it is
// refused.
func (a *api) adoptingClaim(ctx context.Context, owner, class string) (*corev1.PersistentVolumeClaim, error) {
	namespace, name, _ := strings.Cut(owner, "/")
	pvc, err := a.core.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading claim %s: %w", owner, err)
	case pvc.Spec.VolumeName != "":
		return nil, fmt.Errorf("claim %s has PersistentVolume %s already: give another claim with --claim, or --any-claim", owner, pvc.Spec.VolumeName)
	case claim.ClassName(pvc) != class:
		return nil, fmt.Errorf("claim %s is of StorageClass %q, and cannot get a volume of %q: give --storage-class", owner, claim.ClassName(pvc), class)
	}
	return pvc, nil
}

func (s *session) releaseOrphan(ctx context.Context, a *api, c *change, name string) error {
	found, err := a.findOrphan(ctx, name)
	if err != nil {
		return err
	}
	if err := a.checkOrphan(ctx, found); err != nil {
		return err
	}
	ref, err := a.formerClaim(ctx, found)
	if err != nil {
		return err
	}
	was := ""
	if found.Owner != "" {
		was = ", made for claim " + found.Owner
	}
	plan := fmt.Sprintf("Volume %s (%s on %s/%s%s) is wiped. Its data is lost.\n", found.Name, size(found.Length), found.Node, found.Device, was)
	if err := c.confirm(ctx, s, plan); err != nil {
		return err
	}
	remove := corev1.PersistentVolumeReclaimDelete
	pv := persistentVolume(found, &storagev1.StorageClass{ReclaimPolicy: &remove}, corev1.PersistentVolumeFilesystem, ref)
	made, err := a.core.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{FieldManager: fieldManager, DryRun: c.servers()})
	if err != nil {
		return fmt.Errorf("making PersistentVolume %s: %w", pv.Name, err)
	}
	if !c.isDryRun() {
		// The agent may have deleted it already: the claim that it names is gone.
		err = a.core.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(made.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("deleting PersistentVolume %s, whose policy is Delete: %w", pv.Name, err)
		}
	}
	_, err = fmt.Fprintf(s.Out, "Made and deleted PersistentVolume %s: the agent of %s wipes the volume%s.\n", pv.Name, found.Node, c.suffix())
	return err
}

// formerClaim names the claim that a volume was made for, with its UID: so no other claim gets the volume meanwhile. If
// that claim exists, under any name, the volume is not given up.
func (a *api) formerClaim(ctx context.Context, o *orphan) (*corev1.ObjectReference, error) {
	uid, ok := diskv1alpha1.VolumeUUID(o.Name)
	if !ok {
		return nil, fmt.Errorf("volume %s was not made for a claim by Berth's scheduler: write its PersistentVolume by nodeagent manifests, docs/operate/backup.md", o.Name)
	}
	claims, err := a.claims(ctx)
	if err != nil {
		return nil, err
	}
	for i := range claims {
		if string(claims[i].UID) == uid {
			return nil, fmt.Errorf("claim %s/%s, for which volume %s was made, still exists: take the volume back with kubectl berth orphans adopt, or delete the claim first", claims[i].Namespace, claims[i].Name, o.Name)
		}
	}
	// Where the name is not known any one will do: no claim has the UID.
	ref := claimReference(cmp.Or(o.Owner, metav1.NamespaceDefault+"/"+o.Name))
	ref.UID = types.UID(uid)
	return ref, nil
}

func (s *session) confirmOrphans(ctx context.Context, a *api, c *change, node string, number int) error {
	ndc, err := a.capacity(ctx, node)
	if err != nil {
		return err
	}
	stopped := conditionOf(ndc, diskv1alpha1.ConditionReclaimStopped)
	if stopped == nil || stopped.Status != metav1.ConditionTrue {
		return fmt.Errorf("reclaim is not stopped on node %s: there is nothing to confirm", node)
	}
	inline := 0
	for _, o := range orphansOf(ndc, inventory.Context{}) {
		if o.Kind == inventory.KindInline {
			inline++
		}
	}
	if inline > number {
		return fmt.Errorf("%d volumes of node %s have lost their pods, not %d: look again, kubectl berth orphans %s", inline, node, number, node)
	}
	plan := fmt.Sprintf("The agent of %s wipes %s whose pods are gone. Their data is lost. It says of them:\n  %s\n", node, plural(inline, "volume"), stopped.Message)
	if err := c.confirm(ctx, s, plan); err != nil {
		return err
	}
	annotations := map[string]string{diskv1alpha1.AnnotationReclaimOrphans: strconv.Itoa(number)}
	if _, err := a.patch(ctx, node, c, map[string]any{"metadata": map[string]any{"annotations": annotations}}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "Annotated NodeDiskCapacity %s with %s=%d%s.\n", node, diskv1alpha1.AnnotationReclaimOrphans, number, c.suffix())
	return err
}
