package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentMoves asserts that volumes keep their data while they grow, are moved on their disk, and the agent is killed
// at random moments, at both sector sizes. After each round there is one volume, at the place that its PersistentVolume
// names, with the size that it names.
func TestAgentMoves(t *testing.T) {
	m := newMoves(t, units.GiB, units.GiB)
	var volumes []*growing
	for i, d := range m.disks {
		v := m.volume(fmt.Sprintf("data-%d", i), d, extent.New((10+int64(i))*units.MiB, 40*units.MiB), 8*units.MiB)
		m.unstage(v.pv)
		volumes = append(volumes, v)
	}
	rounds := 5
	if os.Getenv("BERTH_TORTURE") != "" {
		rounds = 50
	}
	for round := range rounds {
		for _, v := range volumes {
			m.round(t, v)
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	}
	t.Logf("%d moves and %d growths, the agent was killed %d times", m.moved, m.grown, m.kills)
}

// moves is a node whose agent is killed at random moments.
type moves struct {
	*node
	rng                 *rand.Rand
	start               func(more ...string) *exec.Cmd
	agent               *exec.Cmd
	status              diskv1alpha1.NodeDiskCapacityStatus
	moved, grown, kills int
}

// newMoves starts the agent of a node with disks of these sizes. The status is that before there are volumes.
func newMoves(t *testing.T, sizes ...int64) *moves {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := newNode(t, sizes...)
	start := n.process()
	m := &moves{node: n, rng: rand.New(rand.NewPCG(seed, 1)), start: start, agent: start()}
	t.Cleanup(func() { m.kill() })
	m.status = n.ready()
	return m
}

// volume makes a volume, stages it, and fills it with that many random bytes.
func (m *moves) volume(name string, on *testDisk, at extent.Extent, content int64) *growing {
	m.t.Helper()
	published := of(&m.status, on)
	v := &growing{device: on, disk: published.ID, at: at, content: m.random(content)}
	capacity := resource.NewQuantity(at.Len(), resource.BinarySI).String()
	v.pv = m.bound(name, capacity, corev1.PersistentVolumeFilesystem, published, at.Start)
	m.realized(v.pv)
	m.eventually("the volume is staged", func() error { return m.stage(v.pv) })
	if err := os.WriteFile(filepath.Join(m.staging(v.pv), "data"), v.content, 0o600); err != nil {
		m.t.Fatal(err)
	}
	testenv.Run(m.t, "sync", "-f", m.staging(v.pv))
	return v
}

// wantAt has the volume moved, as the scheduler does.
func (m *moves) wantAt(v *growing, to diskv1alpha1.Place) {
	m.t.Helper()
	m.edit(v.pv, func() { metav1.SetMetaDataAnnotation(&v.pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, to.String()) })
}

// holds stages the volume, and fails the test unless it has its content and a file system without errors.
func (m *moves) holds(v *growing) {
	m.t.Helper()
	m.eventually("the volume is staged", func() error { return m.stage(v.pv) })
	now, err := os.ReadFile(filepath.Join(m.staging(v.pv), "data"))
	if err == nil && !bytes.Equal(now, v.content) {
		err = errors.New("it has another content")
	}
	if err != nil {
		m.t.Errorf("volume %s of %v: %v", v.pv.Name, v.at, err)
	}
	m.unstage(v.pv)
	testenv.Run(m.t, "fsck.ext4", "-f", "-n", m.device(v.pv))
}

// restart kills the agent and starts it again.
func (m *moves) restart() {
	m.kill()
	m.kills++
	m.agent = m.start()
}

// growing is a volume, and where it is.
type growing struct {
	pv      *corev1.PersistentVolume
	device  *testDisk
	disk    string
	at      extent.Extent
	content []byte
}

func (m *moves) kill() {
	if m.agent == nil {
		return
	}
	if err := m.agent.Process.Kill(); err != nil {
		m.t.Error(err)
	}
	// The error says that it was killed.
	_ = m.agent.Wait()
	m.agent = nil
}

func (m *moves) random(size int64) []byte {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(m.rng.Uint32())
	}
	return content
}

// next returns where the volume is after the next round: larger, in the other half of the disk or where it is.
func (m *moves) next(v *growing) (to extent.Extent, moves bool) {
	length := min(v.at.Len()+m.rng.Int64N(12)*units.MiB, 200*units.MiB)
	if m.rng.IntN(4) == 0 {
		return extent.New(v.at.Start, length), false
	}
	begin := int64(10)
	if v.at.Start < 500*units.MiB {
		begin = 520
	}
	return extent.New((begin+m.rng.Int64N(200))*units.MiB, length), true
}

// round has the volume grow, where it is or elsewhere, kills the agent meanwhile, and checks the volume.
func (m *moves) round(t *testing.T, v *growing) {
	t.Helper()
	to, moved := m.next(v)
	m.edit(v.pv, func() {
		v.pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(to.Len(), resource.BinarySI)}
		if moved {
			place := diskv1alpha1.Place{Disk: v.disk, Extent: diskv1alpha1.Extent{Start: to.Start, Length: to.Len()}}
			metav1.SetMetaDataAnnotation(&v.pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
		}
	})
	for range m.rng.IntN(3) {
		// The random part of this test.
		<-time.After(time.Duration(m.rng.IntN(120)) * time.Millisecond)
		m.restart()
	}
	// A call that comes before the watch shows the change finds the volume where it was. It is moved when it is unstaged.
	m.eventually("the volume is where its PersistentVolume says", func() error {
		if err := m.stage(v.pv); err != nil {
			return err
		}
		if now, err := os.ReadFile(filepath.Join(m.staging(v.pv), "data")); err != nil || !bytes.Equal(now, v.content) {
			t.Fatalf("the volume holds something else after it went from %v to %v: %v", v.at, to, err)
		}
		err := m.isAt(v, to)
		if err != nil {
			m.unstage(v.pv)
		}
		return err
	})
	m.unstage(v.pv)
	testenv.Run(t, "fsck.ext4", "-f", "-n", m.device(v.pv))
	// What the scheduler does.
	m.edit(v.pv, func() { delete(v.pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	if moved {
		m.moved++
		if !v.device.zero(t, v.at.Start, v.at.Len()) {
			t.Errorf("the earlier place %v is not zero", v.at)
		}
	} else {
		m.grown++
	}
	v.at = to
}

// isAt returns an error unless the volume is published there, and nothing else is on its disk.
func (m *moves) isAt(v *growing, to extent.Extent) error {
	ndc, err := m.ndc()
	if err != nil {
		return err
	}
	d, a, found := held(&ndc.Status, v.pv)
	if !found || d.ID != v.disk || a.Start != to.Start || a.Length != to.Len() || a.Phase != diskv1alpha1.PhaseFormatted {
		return fmt.Errorf("it is published as %+v, want %v", a, to)
	}
	if len(d.Allocations) != 1 {
		return fmt.Errorf("the disk has %+v", d.Allocations)
	}
	return nil
}
