package kubectl

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/component-base/version"
	"sigs.k8s.io/yaml"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// maxLogBytes bounds the log of one container.
const maxLogBytes = 8 << 20

// collectOptions are the flags of `collect`.
type collectOptions struct {
	file  string
	since time.Duration
}

func newCollect(s *session) *cobra.Command {
	var o collectOptions
	cmd := &cobra.Command{
		Use:   "collect",
		Short: "Write what a report about a problem needs into one file",
		Long: "Write what a report about a problem needs into one file, a tar archive.\n\n" +
			"It has the objects of Berth, and of pods, claims, volumes and events what is about Berth. It also has the logs of the scheduler and the agents. " +
			"Secrets, environments and the other parts of pods are not read or left out. Names of pods, claims and nodes are in it: look before you pass it on.",
		Args: cobra.NoArgs,
		RunE: s.connected(func(ctx context.Context, a *api, _ []string) error {
			if o.since <= 0 {
				return fmt.Errorf("--since is %v: it must be longer than 0", o.since)
			}
			return s.collect(ctx, a, &o)
		}),
	}
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "The file to write. It must not exist. Without it the name is made from the time.")
	cmd.Flags().DurationVar(&o.since, "since", 24*time.Hour, "How far back logs go.")
	return cmd
}

// collected is the content of the archive.
type collected struct {
	files []collectedFile
	// missing says what could not be read.
	missing []string
}

type collectedFile struct {
	name string
	text []byte
	// items is how many objects the file has; 0 if it has none.
	items int
}

func (c *collected) add(name string, text []byte, items int) {
	c.files = append(c.files, collectedFile{name, text, items})
}

// addObjects adds objects as one file of YAML documents. kind is their API version and kind, which lists leave out.
func addObjects[T any](c *collected, name, kind string, objects []T, err error, strip func(map[string]any)) error {
	if apierrors.IsForbidden(err) {
		c.missing = append(c.missing, name+": you may not read it")
		return nil
	}
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for i := range objects {
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&objects[i])
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		at := strings.LastIndexByte(kind, '/')
		object["apiVersion"], object["kind"] = kind[:at], kind[at+1:]
		stripMetadata(object)
		if strip != nil {
			strip(object)
		}
		text, err := yaml.Marshal(object)
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	c.add(name, b.Bytes(), len(objects))
	return nil
}

// stripMetadata leaves out the managed fields, and all annotations but Berth's: others may hold anything.
func stripMetadata(object map[string]any) {
	metadata, _ := object["metadata"].(map[string]any)
	delete(metadata, "managedFields")
	annotations, _ := metadata["annotations"].(map[string]any)
	for key := range annotations {
		if prefix, _, _ := strings.Cut(key, "/"); prefix != diskv1alpha1.GroupName {
			delete(annotations, key)
		}
	}
	if len(annotations) == 0 {
		delete(metadata, "annotations")
	}
}

// stripContainers leaves of the containers of a workload only what says which program runs.
func stripContainers(object map[string]any) {
	spec, _ := object["spec"].(map[string]any)
	if template, ok := spec["template"].(map[string]any); ok {
		stripMetadata(template)
		spec, _ = template["spec"].(map[string]any)
	}
	for _, key := range []string{"containers", "initContainers", "ephemeralContainers"} {
		containers, _ := spec[key].([]any)
		for i := range containers {
			c, _ := containers[i].(map[string]any)
			containers[i] = map[string]any{"name": c["name"], "image": c["image"], "resources": c["resources"]}
		}
	}
	delete(spec, "imagePullSecrets")
}

// podPart is what is collected of a pod that uses Berth.
func podPart(p *corev1.Pod) corev1.Pod {
	part := corev1.Pod{
		TypeMeta: p.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
			OwnerReferences: p.OwnerReferences, Annotations: p.Annotations,
		},
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, SchedulerName: p.Spec.SchedulerName, NodeSelector: p.Spec.NodeSelector, Tolerations: p.Spec.Tolerations,
			Priority: p.Spec.Priority, PreemptionPolicy: p.Spec.PreemptionPolicy, SchedulingGates: p.Spec.SchedulingGates,
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, Reason: p.Status.Reason, Message: p.Status.Message, StartTime: p.Status.StartTime, Conditions: p.Status.Conditions},
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName || v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			part.Spec.Volumes = append(part.Spec.Volumes, *v)
		}
	}
	return part
}

// collect writes the archive.
func (s *session) collect(ctx context.Context, a *api, o *collectOptions) error {
	name := cmp.Or(o.file, "berth-"+s.now().UTC().Format("20060102-150405")+".tar.gz")
	// The file is made first: a mistake in its name is found before anything is read. Others cannot read it.
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists: name another file with --file", name)
	}
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	c, err := s.gather(ctx, a, o)
	if err == nil {
		err = c.write(file, s.now())
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return c.report(s, name)
}

// gather reads what is collected.
func (s *session) gather(ctx context.Context, a *api, o *collectOptions) (*collected, error) {
	c := &collected{}
	if err := a.gatherObjects(ctx, c); err != nil {
		return nil, err
	}
	programs, err := a.programs(ctx)
	if err := addObjects(c, "programs/pods.yaml", "v1/Pod", programs, err, stripContainers); err != nil {
		return nil, err
	}
	if err := a.gatherLogs(ctx, c, programs, o.since); err != nil {
		return nil, err
	}
	for name, run := range map[string]func(*session, *output) error{
		"status.txt": func(s *session, form *output) error { return s.status(ctx, a, s.Out, form, true) },
		"doctor.txt": func(s *session, form *output) error { return s.doctor(ctx, a, form, "") },
		"map.txt": func(s *session, _ *output) error {
			return s.mapDisks(ctx, a, s.Out, mapOptions{sort: sortNode, all: true})
		},
	} {
		var text bytes.Buffer
		plain := *s
		plain.Out, plain.color, plain.width = &text, terminal.ColorNever, 0
		if err := run(&plain, newDocumentOutput()); err != nil && !errors.Is(err, errNeedsOperator) {
			fmt.Fprintf(&text, "error: %v\n", err)
		}
		c.add(name, text.Bytes(), 0)
	}
	slices.SortFunc(c.files, func(a, b collectedFile) int { return cmp.Compare(a.name, b.name) })
	return c, nil
}

// gatherObjects reads the objects of Berth, and the others as far as they are about it.
func (a *api) gatherObjects(ctx context.Context, c *collected) error {
	capacities, err := a.capacities(ctx)
	if err != nil {
		return err
	}
	classes, err := a.classes(ctx)
	if err != nil {
		return err
	}
	csiNodes, csiErr := a.csiNodes(ctx)
	nodes, nodesErr := a.nodeObjects(ctx)
	storageClasses, storageErr := a.storageClasses(ctx)
	storageClasses = slices.DeleteFunc(storageClasses, func(x storagev1.StorageClass) bool { return x.Provisioner != diskv1alpha1.DriverName })
	volumes, volumesErr := a.volumes(ctx)
	volumes = slices.DeleteFunc(volumes, func(x corev1.PersistentVolume) bool {
		return x.Spec.CSI == nil || x.Spec.CSI.Driver != diskv1alpha1.DriverName
	})
	claims, claimsErr := a.claims(ctx)
	claims = claimsOf(claims, storageClasses, volumes)
	pods, podsErr := a.pods(ctx, metav1.NamespaceAll, fields.Everything())
	pods = podsOf(pods, claims)
	about := map[string]bool{}
	for i := range pods {
		about["Pod/"+pods[i].Namespace+"/"+pods[i].Name] = true
	}
	for i := range claims {
		about["PersistentVolumeClaim/"+claims[i].Namespace+"/"+claims[i].Name] = true
	}
	events, eventsErr := a.events(ctx, about)
	err = errors.Join(
		addObjects(c, "objects/nodediskcapacities.yaml", "disk.berth.dev/v1alpha1/NodeDiskCapacity", capacities, nil, nil),
		addObjects(c, "objects/diskclasses.yaml", "disk.berth.dev/v1alpha1/DiskClass", classes, nil, nil),
		addObjects(c, "objects/nodes.yaml", "v1/Node", nodes, nodesErr, func(o map[string]any) {
			if status, ok := o["status"].(map[string]any); ok {
				delete(status, "images")
			}
		}),
		addObjects(c, "objects/csinodes.yaml", "storage.k8s.io/v1/CSINode", csiNodes, csiErr, nil),
		addObjects(c, "objects/storageclasses.yaml", "storage.k8s.io/v1/StorageClass", storageClasses, storageErr, nil),
		addObjects(c, "objects/persistentvolumes.yaml", "v1/PersistentVolume", volumes, volumesErr, nil),
		addObjects(c, "objects/persistentvolumeclaims.yaml", "v1/PersistentVolumeClaim", claims, claimsErr, nil),
		addObjects(c, "objects/pods.yaml", "v1/Pod", pods, podsErr, nil),
		addObjects(c, "objects/events.yaml", "v1/Event", events, eventsErr, nil),
	)
	if err != nil {
		return err
	}
	o := &overview{}
	if err := a.readPrograms(ctx, o); err != nil {
		return err
	}
	if o.agents != nil {
		err = addObjects(c, "programs/daemonset.yaml", "apps/v1/DaemonSet", []appsv1.DaemonSet{*o.agents}, nil, stripContainers)
	}
	if o.scheduler != nil {
		err = errors.Join(err, addObjects(c, "programs/deployment.yaml", "apps/v1/Deployment", []appsv1.Deployment{*o.scheduler}, nil, stripContainers))
	}
	c.add("version.txt", []byte("kubectl-berth "+version.Get().GitVersion+"\nAPI server "+o.server+"\nBerth "+imageTag(o)+"\n"), 0)
	return err
}

// claimsOf are the claims of Berth: those of its StorageClasses, and those with its volumes.
func claimsOf(claims []corev1.PersistentVolumeClaim, classes []storagev1.StorageClass, volumes []corev1.PersistentVolume) []corev1.PersistentVolumeClaim {
	ours := map[string]bool{}
	for i := range classes {
		ours["class "+classes[i].Name] = true
	}
	for i := range volumes {
		ours["volume "+volumes[i].Name] = true
	}
	return slices.DeleteFunc(claims, func(c corev1.PersistentVolumeClaim) bool {
		return !ours["volume "+c.Spec.VolumeName] && (c.Spec.StorageClassName == nil || !ours["class "+*c.Spec.StorageClassName])
	})
}

// podsOf are the parts of the pods that use Berth.
func podsOf(pods []corev1.Pod, claims []corev1.PersistentVolumeClaim) []corev1.Pod {
	ours := map[string]bool{}
	for i := range claims {
		ours[claims[i].Namespace+"/"+claims[i].Name] = true
	}
	var parts []corev1.Pod
	for i := range pods {
		p := &pods[i]
		if slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			switch {
			case v.CSI != nil:
				return v.CSI.Driver == diskv1alpha1.DriverName
			case v.PersistentVolumeClaim != nil:
				return ours[p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName]
			case v.Ephemeral != nil:
				return ours[p.Namespace+"/"+p.Name+"-"+v.Name]
			}
			return false
		}) {
			parts = append(parts, podPart(p))
		}
	}
	return parts
}

// events are those about objects of Berth, of its programs, and of the pods and claims in about.
func (a *api) events(ctx context.Context, about map[string]bool) ([]corev1.Event, error) {
	events, err := listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Event, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().Events(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("events", err)
		}
		return list.Items, list, nil
	})
	return slices.DeleteFunc(events, func(e corev1.Event) bool {
		of := &e.InvolvedObject
		if strings.HasPrefix(of.APIVersion, diskv1alpha1.GroupName+"/") || about[of.Kind+"/"+of.Namespace+"/"+of.Name] {
			return false
		}
		return !strings.HasPrefix(e.Source.Component, "berth") && !strings.HasPrefix(e.ReportingController, "berth") &&
			e.Source.Component != diskv1alpha1.DriverName && e.ReportingController != diskv1alpha1.DriverName
	}), err
}

// gatherLogs reads the logs of Berth's programs.
func (a *api) gatherLogs(ctx context.Context, c *collected, programs []corev1.Pod, since time.Duration) error {
	seconds, limit := int64(since.Seconds()), int64(maxLogBytes)
	for i := range programs {
		p := &programs[i]
		for j := range p.Status.ContainerStatuses {
			status := &p.Status.ContainerStatuses[j]
			for _, previous := range []bool{false, true} {
				if previous && status.RestartCount == 0 {
					continue
				}
				name := "logs/" + p.Namespace + "/" + p.Name + "/" + status.Name + ".log"
				if previous {
					name = strings.TrimSuffix(name, ".log") + ".previous.log"
				}
				options := &corev1.PodLogOptions{Container: status.Name, Previous: previous, SinceSeconds: &seconds, LimitBytes: &limit}
				text, err := a.core.CoreV1().Pods(p.Namespace).GetLogs(p.Name, options).DoRaw(ctx)
				switch {
				case apierrors.IsForbidden(err):
					c.missing = append(c.missing, "logs: you may not read pods/log in namespace "+p.Namespace)
					return nil
				case ctx.Err() != nil:
					return ctx.Err()
				case err != nil:
					// A node that is down must not prevent the rest.
					c.missing = append(c.missing, name+": "+err.Error())
				default:
					c.add(name, text, 0)
				}
			}
		}
	}
	return nil
}

// write writes the archive.
func (c *collected) write(file *os.File, at time.Time) error {
	zipped := gzip.NewWriter(file)
	archive := tar.NewWriter(zipped)
	for i := range c.files {
		f := &c.files[i]
		header := &tar.Header{Name: "berth/" + f.name, Mode: 0o600, Size: int64(len(f.text)), ModTime: at, Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("writing the archive: %w", err)
		}
		if _, err := archive.Write(f.text); err != nil {
			return fmt.Errorf("writing the archive: %w", err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	return nil
}

// report says what was taken, and what is missing.
func (c *collected) report(s *session, name string) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	table := &terminal.Table{Columns: []terminal.Column{{Name: "FILE", Shrink: 20}, {Name: "OBJECTS", Right: true}, {Name: "BYTES", Right: true}}}
	for i := range c.files {
		f := &c.files[i]
		objects := "-"
		if f.items > 0 || strings.HasSuffix(f.name, ".yaml") {
			objects = strconv.Itoa(f.items)
		}
		table.AddTexts(f.name, objects, strconv.Itoa(len(f.text)))
	}
	if err := table.Write(s.Out, to); err != nil {
		return err
	}
	for _, m := range c.missing {
		fmt.Fprintf(s.Out, "%s %s\n", to.Mark(terminal.MarkWarning), m)
	}
	_, err = fmt.Fprintf(s.Out, "\nWritten to %s. It has no Secret and no environment, but names of pods, claims and nodes.\n", name)
	return err
}
