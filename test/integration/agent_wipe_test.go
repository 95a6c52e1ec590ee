package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// canaryEvery is how many bytes of a volume have one canary, when it is written all over.
const canaryEvery = 64

// formerVolume is where a volume was whose bytes must be gone before another volume may have them.
type formerVolume struct {
	disk          *testDisk
	start, length int64
}

// canaries counts the canaries in the raw file behind the disk, between the formerVolume's ends.
func (g formerVolume) canaries(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open(g.disk.image)
	if err != nil {
		t.Error(err)
		return -1
	}
	defer f.Close()
	buffer, hits := make([]byte, units.MiB), int64(0)
	for at := g.start; at < g.start+g.length; at += units.MiB {
		if _, err := f.ReadAt(buffer, at); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
			return -1
		}
		hits += int64(bytes.Count(buffer, []byte(canary)))
	}
	return hits
}

// all is how many canaries fill writes.
func (g formerVolume) all() int64 { return g.length / canaryEvery }

// fill writes canaries all over the device.
func (n *node) fill(device string) {
	n.t.Helper()
	block := make([]byte, units.MiB)
	for at := 0; at < len(block); at += canaryEvery {
		copy(block[at:], canary)
	}
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		n.t.Fatal(err)
	}
	for at := int64(0); at < size; at += units.MiB {
		if _, err := f.WriteAt(block[:min(units.MiB, size-at)], at); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		n.t.Fatal(err)
	}
}

// deviceAt is the block device of the partition that begins there.
func (n *node) deviceAt(d *testDisk, start int64) string {
	n.t.Helper()
	files, err := filepath.Glob("/sys/block/" + d.name() + "/" + d.name() + "p*/start")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && sectors*512 == start {
			return "/dev/" + filepath.Base(filepath.Dir(file))
		}
	}
	n.t.Fatalf("nothing begins at %d of %s", start, d.path)
	return ""
}

// filled makes a pod whose volume on the disk has canaries all over.
func (n *node) filled(name string, d *testDisk, class string, size int64) (*corev1.Pod, formerVolume) {
	n.t.Helper()
	ndc, err := n.ndc()
	if err != nil {
		n.t.Fatal(err)
	}
	published := of(&ndc.Status, d)
	volume := n.volumeOf("data", strconv.FormatInt(size, 10), "")
	volume.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class
	pod := n.pod(name, record(n.t, at("data", published.ID, published.Free[0].Start, size)), nil, volume)
	on, a := n.formatted(pod, "data")
	if on.Device != d.name() {
		n.t.Fatalf("the volume is on %s, not on %s", on.Device, d.name())
	}
	g := formerVolume{d, a.Start, a.Length}
	n.fill(n.deviceAt(d, a.Start))
	if hits := g.canaries(n.t); hits != g.all() {
		n.t.Fatalf("%d canaries of %d are found where they were written", hits, g.all())
	}
	return pod, g
}

// freeProof looks into the raw files behind the disks whenever the agent is about to publish a former volume as free.
// The publication passes only after that.
type freeProof struct {
	t    *testing.T
	next http.RoundTripper

	mu     sync.Mutex
	former map[formerVolume]int64 // canaries that were found when it was published first
	said   map[formerVolume]bool
}

func newFreeProof(t *testing.T) *freeProof {
	return &freeProof{t: t, former: map[formerVolume]int64{}, said: map[formerVolume]bool{}}
}

func (u *freeProof) into(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { u.next = next; return u })
	return config
}

func (u *freeProof) watch(g formerVolume) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.former[g] = -1
}

// found is how many canaries there were when the former volume was published as free.
func (u *freeProof) found(g formerVolume) (canaries int64, published bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.former[g], u.said[g]
}

func (u *freeProof) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || r.Body == nil || !strings.Contains(r.URL.Path, "/nodediskcapacities") {
		return u.next.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := r.Body.Close(); err != nil {
		return nil, err
	}
	var ndc diskv1alpha1.NodeDiskCapacity
	if err := json.Unmarshal(body, &ndc); err != nil {
		u.t.Errorf("the agent writes what is no NodeDiskCapacity: %v", err)
	}
	u.look(&ndc.Status)
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	return u.next.RoundTrip(r)
}

func (u *freeProof) look(status *diskv1alpha1.NodeDiskCapacityStatus) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for g := range u.former {
		if !u.said[g] && g.isFree(status) {
			u.said[g], u.former[g] = true, g.canaries(u.t)
		}
	}
}

// isFree reports whether any byte of the former volume is published as free.
func (g formerVolume) isFree(status *diskv1alpha1.NodeDiskCapacityStatus) bool {
	for _, e := range of(status, g.disk).Free {
		if e.Start < g.start+g.length && g.start < e.Start+e.Length {
			return true
		}
	}
	return false
}

// capacityEvent waits for an event about the node's NodeDiskCapacity that has the text in it.
func (n *node) capacityEvent(reason, text string) corev1.Event {
	n.t.Helper()
	var found corev1.Event
	n.eventually("event "+reason+" with "+text, func() error {
		events := &corev1.EventList{}
		if err := n.client.List(n.t.Context(), events, client.InNamespace(metav1.NamespaceDefault)); err != nil {
			return err
		}
		var others []string
		for _, e := range events.Items {
			if e.InvolvedObject.Kind != "NodeDiskCapacity" || e.InvolvedObject.Name != n.name {
				continue
			}
			if e.Reason == reason && strings.Contains(e.Message, text) {
				found = e
				return nil
			}
			others = append(others, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("there is none, but %q", others)
	})
	return found
}

// metric is the sum of the agent's metric over all series that have the labels.
func metric(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			matching := 0
			for _, pair := range m.GetLabel() {
				if value, asked := labels[pair.GetName()]; asked && value == pair.GetValue() {
					matching++
				}
			}
			if matching == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// TestAgentWipeProof: what a volume held is searched in the raw file behind its disk right
// before the agent publishes its extent as free: with every policy, on disks with either
// sector size. Each wipe is signed for in an event and in the metrics.
func TestAgentWipeProof(t *testing.T) {
	const size, disksEach = 24 * units.MiB, 2
	policies := []struct {
		policy diskv1alpha1.WipePolicy
		// Loop devices have no secure discard.
		method, says string
	}{
		{diskv1alpha1.WipeZero, "PUNCH_HOLE", "samples and both ends read back as zeros"},
		{diskv1alpha1.WipeOverwrite, "overwrite", ", read back as zeros"},
		{diskv1alpha1.WipeSecureDiscard, "overwrite", "the device has no secure discard"},
		{diskv1alpha1.WipeNone, "none", "NOT wiped"},
	}
	var sizes []int64
	for range len(policies) * disksEach {
		sizes = append(sizes, 40*units.MiB)
	}
	n := newNode(t, sizes...)
	for i, p := range policies {
		// The first by name selects the disk.
		class := n.class("0"+n.name+strings.ToLower(string(p.policy)), n.disks[disksEach*i], n.disks[disksEach*i+1])
		class.Spec.WipePolicy = p.policy
		n.create(class)
	}
	u := newFreeProof(t)
	n.options.Config = u.into(n.options.Config)
	n.start()
	n.ready()
	searched, found := int64(0), int64(0)
	for i, p := range policies {
		class := "0" + n.name + strings.ToLower(string(p.policy))
		labels := map[string]string{"class": class, "policy": string(p.policy), "method": p.method, "result": "done"}
		bytesOf := map[string]string{"class": class}
		wipes, wiped := metric(t, "berth_node_wipes_total", labels), metric(t, "berth_node_wiped_bytes_total", bytesOf)
		for j := range disksEach {
			d := n.disks[disksEach*i+j]
			pod, g := n.filled(fmt.Sprintf("%s-%d", strings.ToLower(string(p.policy)), j), d, class, size)
			u.watch(g)
			a := diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, "data"))
			n.delete(pod)
			n.eventually("the extent is published", func() error {
				if _, published := u.found(g); !published {
					return errors.New("it is not")
				}
				return nil
			})
			hits, _ := u.found(g)
			searched += g.all()
			found += hits
			if p.policy == diskv1alpha1.WipeNone {
				if hits != g.all() {
					t.Errorf("None: %d of %d canaries are left: it does not wipe, or the search finds nothing", hits, g.all())
				}
				found -= hits
			} else if hits != 0 {
				t.Errorf("%s: %d of %d canaries are left when the extent is published as free", p.policy, hits, g.all())
			}
			event := n.capacityEvent("VolumeWiped", a)
			if !strings.Contains(event.Message, p.says) || (event.Type == corev1.EventTypeWarning) != (p.policy == diskv1alpha1.WipeNone) {
				t.Errorf("%s: the event is %s: %s", p.policy, event.Type, event.Message)
			}
			if got := metric(t, "berth_node_wipes_total", labels) - wipes; got != float64(j+1) {
				t.Errorf("%s: %v wipes are counted as %v, want %d", p.policy, got, labels, j+1)
			}
		}
		if got := metric(t, "berth_node_wiped_bytes_total", bytesOf) - wiped; got != float64(disksEach*size) {
			t.Errorf("%s: %v bytes are counted, want %d", p.policy, got, disksEach*size)
		}
	}
	t.Logf("%d policies on %d disks: %d canaries written; found when their extents were published: %d, and all of those of None", len(policies), len(n.disks), searched, found)
}

// TestAgentWipeProofKilled: the agent is killed (SIGKILL) in the middle of wipes, at
// different points, once while its NodeDiskCapacity is deleted by hand: whatever it
// publishes, at no time are bytes of the volume free that hold what the volume held.
func TestAgentWipeProofKilled(t *testing.T) {
	n := newNode(t, 64*units.MiB)
	d := n.disks[0]
	n.slow("16Mi")
	start := n.process()
	process := start()
	t.Cleanup(func() { _ = process.Process.Kill() })
	n.ready()
	watcher, err := client.NewWithWatch(n.plane.RESTConfig(), client.Options{Scheme: n.client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	searched, kills, looks := int64(0), 0, 0
	for name, reached := range map[string]func(g formerVolume) bool{
		"at-first":     func(g formerVolume) bool { return g.canaries(t) < g.all() },
		"in-the-midst": func(g formerVolume) bool { return g.canaries(t) < g.all()*3/4 },
		"reading-back": func(g formerVolume) bool { return g.canaries(t) == 0 },
	} {
		// So slow that a busy machine is in time.
		n.slow(map[string]string{"at-first": "8Mi", "in-the-midst": "4Mi", "reading-back": "8Mi"}[name])
		pod, g := n.filled(name, d, n.name, 24*units.MiB)
		watch, err := watcher.Watch(t.Context(), &diskv1alpha1.NodeDiskCapacityList{}, client.MatchingFields{"metadata.name": n.name})
		if err != nil {
			t.Fatal(err)
		}
		n.delete(pod)
		if name == "in-the-midst" {
			n.showsProgress(pod)
		}
		n.eventually(name+": the wipe is under way", func() error {
			if _, a, ok := n.allocated(pod); !ok || a.Phase != diskv1alpha1.PhaseWiping {
				return fmt.Errorf("published is %+v", a)
			}
			if !reached(g) {
				return fmt.Errorf("%d canaries", g.canaries(t))
			}
			return nil
		})
		if err := process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = process.Wait()
		kills++
		left := g.canaries(t)
		if _, a, ok := n.allocated(pod); !ok || a.Phase != diskv1alpha1.PhaseWiping {
			t.Errorf("%s: killed too late, published is %+v", name, a)
		}
		if name == "in-the-midst" {
			if left == 0 || left == g.all() {
				t.Errorf("%s: %d of %d canaries are left: it was not killed in the midst", name, left, g.all())
			}
			ndc, err := n.ndc()
			if err != nil {
				t.Fatal(err)
			}
			n.remove(ndc)
		}
		n.slow("")
		process = start()
		free := false
		for deadline := time.After(patience); !free; {
			select {
			case event := <-watch.ResultChan():
				ndc, ok := event.Object.(*diskv1alpha1.NodeDiskCapacity)
				if !ok {
					t.Fatalf("the watch says %v", event)
				}
				looks++
				if free = event.Type != "DELETED" && g.isFree(&ndc.Status); free {
					if hits := g.canaries(t); hits != 0 {
						t.Errorf("%s: %d canaries are left when the extent is published as free", name, hits)
					}
				}
			case <-deadline:
				t.Fatalf("%s: the next agent does not end the wipe", name)
			}
		}
		watch.Stop()
		searched += g.all()
	}
	if canaryIn(t, d) {
		t.Error("there are canaries elsewhere on the disk")
	}
	n.end(process)
	t.Logf("%d kills in the midst of wipes, %d publications looked at: %d canaries written, 0 found when their extents were published", kills, looks, searched)
}

// TestAgentWipeOfClass: the API server refuses a way to wipe that there is not.
func TestAgentWipeOfClass(t *testing.T) {
	n := newNode(t, 64*units.MiB)
	for says, change := range map[string]func(*diskv1alpha1.DiskClassSpec){
		"Unsupported value":             func(s *diskv1alpha1.DiskClassSpec) { s.WipePolicy = "Shred" },
		"wipeRate must be at least 1Mi": func(s *diskv1alpha1.DiskClassSpec) { s.WipeRate = resource.NewQuantity(units.MiB-1, resource.BinarySI) },
	} {
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name + "-other"}}
		class.Spec.Devices.Paths = []string{"/dev/none"}
		change(&class.Spec)
		if err := n.client.Create(t.Context(), class, client.DryRunAll); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name + "-other"}}
	class.Spec.Devices.Paths = []string{"/dev/none"}
	class.Spec.WipeRate = resource.NewQuantity(units.MiB, resource.BinarySI)
	n.create(class)
	if class.Spec.WipePolicy != diskv1alpha1.WipeZero {
		t.Errorf("the default is %q", class.Spec.WipePolicy)
	}
}

// slow has the node's class overwrite at that rate, or at any if it is empty.
func (n *node) slow(rate string) {
	n.t.Helper()
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(class, func() {
		class.Spec.WipePolicy, class.Spec.WipeRate = diskv1alpha1.WipeOverwrite, nil
		if rate != "" {
			q := resource.MustParse(rate)
			class.Spec.WipeRate = &q
		}
	})
}

func (n *node) allocated(pod *corev1.Pod) (diskv1alpha1.Disk, diskv1alpha1.Allocation, bool) {
	n.t.Helper()
	ndc, err := n.ndc()
	if err != nil {
		n.t.Fatal(err)
	}
	return allocation(&ndc.Status, pod, "data")
}

// showsProgress waits until the NodeDiskCapacity says how far the wipe is.
func (n *node) showsProgress(pod *corev1.Pod) {
	n.t.Helper()
	n.published("progress of the wipe is shown", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		_, a, _ := allocation(s, pod, "data")
		if a.Phase != diskv1alpha1.PhaseWiping || a.Wiping == nil || a.Wiping.Policy != diskv1alpha1.WipeOverwrite || a.Wiping.Wiped == 0 || a.Wiping.Wiped > a.Length {
			return errors.New("it is not")
		}
		return nil
	})
}

// TestAgentWipeProofByHand deletes objects of the API by hand in the middle of things: a pod while its volume is
// mounted and full, a PersistentVolume with and without its finalizer, and the NodeDiskCapacity. It asserts that
// nothing becomes free that was not wiped.
func TestAgentWipeProofByHand(t *testing.T) {
	n := newNode(t, 256*units.MiB)
	d := n.disks[0]
	u := newFreeProof(t)
	n.options.Config = u.into(n.options.Config)
	n.start()
	status := n.ready()
	published := of(&status, d)
	begin := published.Free[0].Start

	// A pod, mounted: its file system is filled until nothing fits any more.
	pod := n.pod("mounted", record(t, at("data", published.ID, begin, 48*units.MiB)), nil, n.volumeOf("data", "48Mi", "ext4"))
	n.formatted(pod, "data")
	if err := n.publish(pod, "data"); err != nil {
		t.Fatal(err)
	}
	written := n.fillMount(n.target(pod, "data"))
	ofPod := formerVolume{d, begin, 48 * units.MiB}
	if hits := ofPod.canaries(t); hits < written {
		t.Fatalf("%d canaries of %d are found where they were written", hits, written)
	}
	u.watch(ofPod)
	n.delete(pod)

	// PersistentVolumes: one is deleted as a user does, the other is torn from its volume.
	block := func(name string, i int64) (*corev1.PersistentVolume, formerVolume) {
		g := formerVolume{d, begin + i*64*units.MiB, 48 * units.MiB}
		pv := n.bound(name, "48Mi", corev1.PersistentVolumeBlock, published, g.start)
		n.realized(pv)
		n.fill(n.device(pv))
		u.watch(g)
		return pv, g
	}
	deleted, ofDeleted := block("deleted", 1)
	torn, ofTorn := block("torn", 2)
	n.remove(deleted)
	n.edit(torn, func() { torn.Finalizers = nil })
	n.remove(torn)
	n.gone(torn)
	n.orphans(1)
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	n.remove(ndc)
	n.keeps("a volume without PersistentVolume is wiped", torn)
	if hits := ofTorn.canaries(t); hits != ofTorn.all() {
		t.Errorf("a volume without PersistentVolume has %d of %d canaries", hits, ofTorn.all())
	}
	for _, g := range []formerVolume{ofPod, ofDeleted, ofTorn} {
		if _, published := u.found(g); published {
			t.Errorf("%d of %s is published as free while it is mounted, bound or quarantined", g.start, d.name())
		}
	}

	n.phase(deleted, corev1.VolumeReleased)
	n.gone(deleted)
	n.unpublish(pod, "data")
	searched := written + ofDeleted.all()
	for what, g := range map[string]formerVolume{"pod": ofPod, "PersistentVolume": ofDeleted} {
		n.eventually("the extent is published", func() error {
			if _, published := u.found(g); !published {
				return errors.New("it is not")
			}
			return nil
		})
		if hits, _ := u.found(g); hits != 0 {
			t.Errorf("%s: %d canaries are left when the extent is published as free", what, hits)
		}
	}
	if hits := ofTorn.canaries(t); hits != ofTorn.all() {
		t.Errorf("at last a volume without PersistentVolume has %d of %d canaries", hits, ofTorn.all())
	}
	t.Logf("%d canaries written into volumes that went, 0 found when their extents were published; %d of a quarantined volume kept", searched, ofTorn.all())
}

// fillMount fills the file system with canaries until it is full, and returns how many.
func (n *node) fillMount(target string) (written int64) {
	n.t.Helper()
	block := make([]byte, units.MiB)
	for at := 0; at < len(block); at += canaryEvery {
		copy(block[at:], canary)
	}
	f, err := os.Create(filepath.Join(target, "canaries"))
	if err != nil {
		n.t.Fatal(err)
	}
	for {
		count, err := f.Write(block)
		written += int64(count / canaryEvery)
		if err != nil {
			break
		}
	}
	if err := f.Close(); err != nil {
		n.t.Fatal(err)
	}
	if out, err := exec.Command("sync", "-f", target).CombinedOutput(); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	if written < 16*units.MiB/canaryEvery {
		n.t.Fatalf("only %d canaries fit", written)
	}
	return written
}
