package pages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/units"
)

// hddSize is the size of a disk for what the pages have beyond the demo.
const hddSize = 3 * units.GiB

// stage is the cluster on which pages are played, one after the other.
type stage struct {
	*cluster.Cluster
	repository string
	// classes are the DiskClasses, and kept the other objects without a namespace, before the first page.
	classes []v1alpha1.DiskClass
	kept    map[string]bool
}

// newStage prepares the cluster of the demo, whether that has run or not: what it made is removed but for the classes,
// and each node gets another disk, of class hdd.
func newStage(ctx context.Context, c *cluster.Cluster, repository string) (*stage, error) {
	s := &stage{Cluster: c, repository: repository}
	hdd := &v1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "hdd"}}
	hdd.Spec.Adoption, hdd.Spec.NewDeviceGrace = v1alpha1.AdoptAutomatic, &metav1.Duration{}
	for _, n := range c.Nodes() {
		disk, err := c.AddDisk(n.Name, cluster.DiskOptions{Size: hddSize})
		if err != nil {
			return nil, err
		}
		hdd.Spec.Devices.Paths = append(hdd.Spec.Devices.Paths, disk.Path)
	}
	// It also selects these disks, but of two classes the first by name has a device.
	if err := c.Apply(ctx, "config/samples/diskclass.yaml"); err != nil {
		return nil, err
	}
	if err := c.Client().Create(ctx, hdd); err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes() {
		group.Go(func() error { return errors.Join(c.StopAgent(n.Name), c.StartAgent(groupCtx, n.Name)) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	classes := &v1alpha1.DiskClassList{}
	if err := c.Client().List(ctx, classes); err != nil {
		return nil, err
	}
	s.classes = classes.Items
	have, err := s.global(ctx)
	if err != nil {
		return nil, err
	}
	s.kept = map[string]bool{}
	for _, name := range have {
		s.kept[name] = true
	}
	return s, s.clear(ctx)
}

// play runs the commands of a page, and removes what they have made.
func (s *stage) play(t *testing.T, steps []step) {
	t.Cleanup(func() {
		if err := s.clear(context.Background()); err != nil {
			t.Error(err)
		}
	})
	folder, err := s.folder(t)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pagePatience)
	defer cancel()
	sh, err := startShell(ctx, folder,
		"KUBECONFIG="+s.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(s.Dir(), "kubectl"),
		"PATH="+filepath.Dir(s.Program("kubectl"))+":"+os.Getenv("PATH"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, step := range steps {
		if step.file != "" {
			path := filepath.Join(folder, step.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(step.content), 0o600)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		found, err := s.try(t, sh, step, names)
		if err == nil {
			names = found
		} else {
			t.Errorf("line %d: %s\n%v", step.line, step.command, err)
		}
	}
	if err := sh.stop(); err != nil {
		t.Error(err)
	}
}

// folder makes a folder that looks like the repository's root, for the commands of a page and their files.
func (s *stage) folder(t *testing.T) (string, error) {
	folder := t.TempDir()
	entries, err := os.ReadDir(s.repository)
	for _, e := range entries {
		err = errors.Join(err, os.Symlink(filepath.Join(s.repository, e.Name()), filepath.Join(folder, e.Name())))
	}
	return folder, err
}

// reads matches the commands that can be repeated until they print what the page shows.
var reads = regexp.MustCompile(`^kubectl (?:-n \S+ )?(?:get|describe|logs|exec|berth (?:map|get|status|explain|fit|top|orphans|doctor|version)) |--dry-run=server`)

// try runs a command, and repeats one that only reads until it prints what the page shows. It returns the names with
// those of this command.
func (s *stage) try(t *testing.T, sh *shell, step step, names map[string]string) (map[string]string, error) {
	run := func() (string, error) { return sh.run(step.command) }
	if step.node != "" {
		run = func() (string, error) { return s.Exec(t.Context(), step.node, "bash", "-c", step.command) }
	}
	var found map[string]string
	var last string
	defer func() { t.Logf("$ %s\n%s", step.command, last) }()
	look := func(context.Context) error {
		printed, err := run()
		last = printed
		// Where the page shows something, that can be an error.
		if err == nil || step.shown != "" {
			found, err = match(step.shown, printed, names)
		}
		if err != nil {
			return fmt.Errorf("%w\nIt printed:\n%s", err, printed)
		}
		return nil
	}
	if !reads.MatchString(step.command) {
		return found, look(t.Context())
	}
	err := cluster.Eventually(t.Context(), patience, look)
	return found, err
}

// Kinds of objects that pages make.
const (
	global = "namespaces,validatingadmissionpolicies,validatingadmissionpolicybindings," +
		"clusterroles,clusterrolebindings,customresourcedefinitions"
	namespaced = "deployments,jobs,pods,persistentvolumeclaims,resourcequotas,limitranges"
)

// global are the names of the objects without a namespace, as kubectl prints them.
func (s *stage) global(ctx context.Context) ([]string, error) {
	out, err := s.Kubectl(ctx, "get", global, "--output=name")
	return strings.Fields(out), err
}

// clear removes what a page has made, puts the DiskClasses back, and waits until all space is free.
func (s *stage) clear(ctx context.Context) error {
	have, err := s.global(ctx)
	if err != nil {
		return err
	}
	added := slices.DeleteFunc(have, func(name string) bool { return s.kept[name] })
	// Those that are deleted with a StatefulSet have 30 seconds to end.
	if _, err := s.Kubectl(ctx, "delete", "statefulsets", "--all", "--cascade=orphan", "--namespace=default"); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "delete", namespaced, "--all", "--grace-period=1", "--namespace=default"); err != nil {
		return err
	}
	if len(added) > 0 {
		if _, err := s.Kubectl(ctx, append([]string{"delete"}, added...)...); err != nil {
			return err
		}
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := s.Client().List(ctx, volumes); err != nil {
		return err
	}
	for _, v := range volumes.Items {
		released := v.DeepCopy()
		released.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		if err := s.Client().Patch(ctx, released, client.MergeFrom(&v)); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	// They cannot be changed, and a page may have made them.
	if _, err := s.Kubectl(ctx, "delete", "storageclasses", "--all"); err != nil {
		return err
	}
	if err := s.Apply(ctx, "config/samples/storageclass.yaml"); err != nil {
		return err
	}
	for _, class := range s.classes {
		now := &v1alpha1.DiskClass{}
		if err := s.Client().Get(ctx, client.ObjectKeyFromObject(&class), now); err != nil {
			return err
		}
		restored := now.DeepCopy()
		restored.Spec = class.Spec
		if err := s.Client().Patch(ctx, restored, client.MergeFrom(now)); err != nil {
			return err
		}
	}
	if err := cluster.Eventually(ctx, patience, s.free); err != nil {
		return err
	}
	_, err = s.Kubectl(ctx, "delete", "events", "--all", "--namespace=default")
	return err
}

// free is nil when there are no volumes, and all disks serve.
func (s *stage) free(ctx context.Context) error {
	volumes := &corev1.PersistentVolumeList{}
	if err := s.Client().List(ctx, volumes); err != nil {
		return err
	}
	if n := len(volumes.Items); n > 0 {
		return fmt.Errorf("%d PersistentVolumes are left", n)
	}
	nodes := &v1alpha1.NodeDiskCapacityList{}
	if err := s.Client().List(ctx, nodes); err != nil {
		return err
	}
	disks := 0
	for _, n := range nodes.Items {
		for _, d := range n.Status.Disks {
			if len(d.Allocations) > 0 {
				return fmt.Errorf("%s has a volume of %s", n.Name, d.Allocations[0].Owner)
			}
			if d.State == v1alpha1.DiskReady && d.Class != "" && len(d.Free) == 1 {
				disks++
			}
		}
	}
	want := 0
	for _, n := range s.Nodes() {
		want += len(n.Disks)
	}
	if disks != want {
		return fmt.Errorf("%d of %d disks are in service and free", disks, want)
	}
	return nil
}
