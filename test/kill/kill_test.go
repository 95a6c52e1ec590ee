package kill

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// torture is the long form.
var torture = os.Getenv("BERTH_TORTURE") != ""

// budget is how much time is spent on kills at the calls that change nothing, on each of the two disks. A life has more
// than ten thousand of them, and all would take a working day.
func budget() time.Duration {
	if torture {
		return 40 * time.Minute
	}
	return 18 * time.Second
}

func buildLife(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "losetup", "sgdisk", "sfdisk", "parted", "blkid", "wipefs", "mkfs.ext4", "strace")
	program := filepath.Join(t.TempDir(), "life")
	testenv.Run(t, "go", "build", "-o", program, "./life")
	return program
}

// TestKillAtEverySystemCall kills the program at each of its system calls in turn. It tries all that change something.
// Of the others, between which nothing can change, it tries as many as there is time for, spread evenly.
func TestKillAtEverySystemCall(t *testing.T) {
	t.Parallel()
	program := buildLife(t)
	for _, test := range []struct {
		name    string
		image   func(*testing.T) string
		sectors []int
	}{
		// Begins with the blank disk. The volume is a partition.
		{"first partition", blankImage, []int{512, 4096}},
		// The volume is a loop device, beside a neighbor's.
		{"above the partitions", fullImage, []int{512}},
	} {
		t.Run(test.name, func(t *testing.T) {
			// Much of the time is spent waiting for the medium.
			t.Parallel()
			c := &campaign{program: program, template: test.image(t), sectors: test.sectors}
			c.countCalls(t)
			begin := time.Now()
			for _, at := range c.plan() {
				if t.Failed() {
					break
				}
				if at.nth > c.counts[at.number] {
					continue // a later life without it was seen
				}
				if changingCalls[at.number] || time.Since(begin) < budget() {
					c.killAt(t, at)
				}
			}
			c.report(t, time.Since(begin))
		})
	}
}

// campaign kills lives that all begin on a copy of the same disk.
type campaign struct {
	program, template string
	sectors           []int
	head              []byte // of the template
	// counts are the calls of a whole life, by number: the lowest of all lives that were not killed. A life repeats
	// calls as long as another process has its device open, so some lives have more.
	counts map[uint64]int

	lives, killedAgain, reboots, verified int
	killed                                map[uint64]int // by number
}

// countCalls runs a few lives under the tracer without a kill, to count their calls.
func (c *campaign) countCalls(t *testing.T) {
	t.Helper()
	const lives = 3
	c.killed = map[uint64]int{}
	var err error
	if c.head, err = readHead(c.template); err != nil {
		t.Fatal(err)
	}
	for i := range lives {
		sector := c.sectors[i%len(c.sectors)]
		l := c.newLife(t, sector)
		end := l.trace(t, true, call{})
		if end.status != 0 {
			t.Fatalf("an undisturbed life: exit %d\n%s", end.status, l.output(t))
		}
		l.check(t, true)
		l.close(t)
		if i == 0 {
			c.counts = end.counts
		}
		c.lowerCounts(end.counts)
	}
}

// lowerCounts lowers the counts to those of a life that was not killed.
func (c *campaign) lowerCounts(counts map[uint64]int) {
	for number, n := range c.counts {
		c.counts[number] = min(n, counts[number])
	}
}

// plan lists all calls. Those that change something come first. Any beginning of the rest is spread evenly over it.
func (c *campaign) plan() []call {
	var first, others []call
	for number, n := range c.counts {
		for i := range n {
			if changingCalls[number] {
				first = append(first, call{number, i + 1})
			} else {
				others = append(others, call{number, i + 1})
			}
		}
	}
	slices.SortFunc(first, call.compare)
	slices.SortFunc(others, call.compare)
	return append(first, spread(others)...)
}

// spread orders a list so that any beginning of it is spread evenly over the whole list.
func spread[T any](list []T) []T {
	// The step is near the golden ratio of the length, and has no divisor in common with it.
	step := int(float64(len(list))*0.618) + 1
	for gcd(step, len(list)) != 1 {
		step++
	}
	ordered := make([]T, len(list))
	for i := range list {
		ordered[i] = list[i*step%len(list)]
	}
	return ordered
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// killAt kills a life at a call, and some of those that follow it as well. The machine is left as it was, or is as
// after a reboot, alternately. The last life runs to its end.
func (c *campaign) killAt(t *testing.T, at call) {
	t.Helper()
	c.lives++
	l := c.newLife(t, c.sectors[c.lives%len(c.sectors)])
	defer l.close(t)
	for kills := range 2 {
		end := l.trace(t, false, at)
		if !end.killed {
			if end.status != 0 {
				t.Fatalf("%s, killed %d times: the next exits with %d\n%s", at, kills, end.status, l.output(t))
			}
			if kills == 0 {
				c.lowerCounts(end.counts)
			}
			break
		}
		if kills == 0 {
			c.killed[at.number]++
		} else {
			c.killedAgain++
		}
		if (c.lives+kills)%3 == 0 {
			c.reboots++
			l.reboot(t)
		}
		if !torture && c.lives%3 != 0 {
			break
		}
		// In the others it is the same call of the next life, which has less to do.
		at.nth = 1 + at.nth/2
	}
	if out, err := l.command().CombinedOutput(); err != nil {
		t.Fatalf("killed at %s, the next: %v\n%s", at, err, out)
	}
	sample := c.lives%10 == 0
	if sample {
		c.verified++
	}
	l.check(t, sample)
	if t.Failed() {
		t.Fatalf("after a kill at %s", at)
	}
}

func (c *campaign) report(t *testing.T, took time.Duration) {
	t.Helper()
	total, killed := 0, 0
	var lines []string
	for number, n := range c.counts {
		total += n
		killed += c.killed[number]
		if c.killed[number] > 0 {
			lines = append(lines, fmt.Sprintf("%s %d/%d", callName(number), c.killed[number], n))
		}
		enough := n * 9 / 10
		if number == unix.SYS_WRITE {
			// The journal's lines. The other writes are the Go runtime's, in any number.
			enough = 6
		}
		if changingCalls[number] && !t.Failed() && c.killed[number] < enough {
			t.Errorf("%s: %d of %d calls were killed", callName(number), c.killed[number], n)
		}
	}
	// Without these a life does not write, mount or unmount anything.
	for _, number := range []uint64{unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_IOCTL, unix.SYS_MOUNT, unix.SYS_UMOUNT2} {
		if !t.Failed() && c.killed[number] == 0 {
			t.Errorf("%s: no call was killed", callName(number))
		}
	}
	slices.Sort(lines)
	t.Logf("%d lives: %d of the %d system calls of a life killed, %d killed once more, %d reboots, %d tables verified, in %v: %s",
		c.lives, killed, total, c.killedAgain, c.reboots, c.verified, took.Round(time.Second), strings.Join(lines, ", "))
}

// life is one disk with one volume's life.
type life struct {
	*loopDisk
	program, dir string
	template     []byte // the disk's head
}

func (c *campaign) newLife(t *testing.T, sector int) *life {
	t.Helper()
	l := &life{program: c.program, dir: t.TempDir(), template: c.head}
	image := filepath.Join(l.dir, "disk.img")
	testenv.Run(t, "cp", "--sparse=always", c.template, image)
	if err := os.Mkdir(l.mountpoint(), 0o700); err != nil {
		t.Fatal(err)
	}
	l.loopDisk = attach(t, image, sector)
	t.Cleanup(func() {
		if l.loopDisk != nil { // the test has failed
			l.reboot(t)
			l.detach(t)
		}
	})
	return l
}

func (l *life) close(t *testing.T) {
	if t.Failed() {
		return // the cleanup handles it, since the test has failed
	}
	// Once detached, the loop device may be another test's: nothing may detach it again.
	disk := l.loopDisk
	l.loopDisk = nil
	disk.detach(t)
	if err := os.RemoveAll(l.dir); err != nil {
		t.Error(err)
	}
}

func (l *life) mountpoint() string { return filepath.Join(l.dir, "mnt") }
func (l *life) journal() string    { return filepath.Join(l.dir, "journal") }

func (l *life) command() *exec.Cmd {
	return exec.Command(l.program, "-device", l.path, "-mountpoint", l.mountpoint(), "-journal", l.journal(),
		"-partition", partition, "-start", decimal(volumeExtent.Start), "-length", decimal(volumeExtent.Len()), "-grown", decimal(grownExtent.Len()),
		"-copy", copyGUID, "-moved", decimal(movedExtent.Start))
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func (l *life) trace(t *testing.T, none bool, at call) traceResult {
	t.Helper()
	out, err := os.Create(filepath.Join(l.dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	command := l.command()
	command.Stdout, command.Stderr = out, out
	end, err := trace(command, none, at)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

func (l *life) output(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(l.dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// reboot removes everything that the kernel has of the disk.
func (l *life) reboot(t *testing.T) {
	t.Helper()
	if err := unix.Unmount(l.mountpoint(), 0); err != nil && err != unix.EINVAL {
		t.Fatalf("unmounting: %v", err)
	}
	l.removeVolumes(t)
}

// check asserts that the disk is as after a life of its volume: zeros.
func (l *life) check(t *testing.T, tools bool) {
	t.Helper()
	journal, err := os.ReadFile(l.journal())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"adopted", "formatted", "written", "grown", "moved", "deleted", "wiped"} {
		if n := bytes.Count(journal, []byte(line)); n != 1 {
			t.Errorf("the journal says %s %d times", line, n)
		}
	}
	now, err := readHead(l.image)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(now, []byte("canary of a life")); n != 0 {
		t.Errorf("%d canaries are left on the disk", n)
	}
	for _, e := range []extent.Extent{grownExtent, movedExtent} {
		if !bytes.Equal(now[e.Start:e.End], make([]byte, e.Len())) {
			t.Errorf("the volume's extent %v is not zero", e)
		}
	}
	for _, e := range [][2]int64{{2 * units.MiB, grownExtent.Start}, {grownExtent.End, movedExtent.Start}, {movedExtent.End, 46 * units.MiB}} {
		if !bytes.Equal(now[e[0]:e[1]], l.template[e[0]:e[1]]) {
			t.Errorf("bytes of others between %d and %d have changed", e[0], e[1])
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(l.mountpoint())) {
		t.Errorf("the volume is still mounted: %v", err)
	}
	if parts, loops := testenv.Partitions(t, l.path), l.volumeLoops(t); len(loops) > 1 || !slices.Equal(parts, []int{255}) {
		t.Errorf("the kernel has the partitions %v and the loop devices %v", parts, loops)
	}
	if tools {
		l.verify(t)
	}
}

func readHead(image string) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, headBytes)
	_, err = f.ReadAt(b, 0)
	return b, err
}
