package host

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// State describes a cluster on this machine. It is written to its directory before
// anything else is made, and removed last.
type State struct {
	// ID marks everything that belongs to the cluster: 8 hexadecimal digits.
	ID string `json:"id"`
	// Name is for people, and names the directory that keeps the logs.
	Name string `json:"name"`
	// Dir is the state directory.
	Dir string `json:"dir"`
	// Owner is the process that made the cluster.
	Owner Process `json:"owner"`
	// Kept clusters outlive their owner.
	Kept bool `json:"kept"`
	// Subnet is the /24 of the nodes; empty for a control plane without nodes.
	Subnet string `json:"subnet,omitempty"`
	// Sysctls are kernel settings that kubelets change, as they were before.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Root is the directory where the clusters of a checkout are registered.
	Root string `json:"root"`
}

// Environment variables that mark a cluster's processes, and the prefix of its
// control groups.
const (
	idVariable        = "BERTH_CLUSTER"
	componentVariable = "BERTH_COMPONENT"
	cgroupPrefix      = "berth-"
	stateFile         = "state.json"
)

// changedByKubelet are the settings that a kubelet overwrites for the whole machine.
var changedByKubelet = []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"}

// Options say what kind of cluster is made.
type Options struct {
	// Root is the directory where clusters are registered.
	Root string
	// Dir is the state directory; empty for a new one below Root.
	Dir string
	// Name is for people.
	Name string
	// Nodes: the cluster has nodes, so it needs a subnet and changes kernel settings.
	Nodes bool
}

// New registers a cluster and makes its state directory.
func New(o Options) (*State, error) {
	unlock, err := lock(o.Root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The kernel names the files behind loop devices by their real paths.
	if o.Root, err = filepath.EvalSymlinks(o.Root); err != nil {
		return nil, err
	}
	others, err := List(o.Root)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("make a cluster ID: %w", err)
	}
	self, err := Self()
	if err != nil {
		return nil, err
	}
	s := &State{ID: hex.EncodeToString(id), Name: o.Name, Owner: self, Root: o.Root}
	registered := filepath.Join(o.Root, s.ID)
	s.Dir = registered
	if o.Dir != "" {
		if s.Dir, err = filepath.Abs(o.Dir); err != nil {
			return nil, err
		}
		// It is removed with the cluster, whole.
		if entries, err := os.ReadDir(s.Dir); err == nil && len(entries) > 0 {
			return nil, fmt.Errorf("state directory %s is not empty: name a new or empty one", s.Dir)
		}
	}
	if o.Nodes {
		if s.Subnet, err = freeSubnet(others); err != nil {
			return nil, err
		}
		if s.Sysctls, err = originalSysctls(others); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, err
	}
	if s.Dir, err = filepath.EvalSymlinks(s.Dir); err != nil {
		return nil, err
	}
	if err := s.save(); err != nil {
		return nil, err
	}
	if s.Dir != registered {
		if err := os.Symlink(s.Dir, registered); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Keep makes the cluster outlive the process that made it.
func (s *State) Keep() error {
	s.Kept = true
	return s.save()
}

func (s *State) save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.Dir, stateFile)
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	return os.Rename(path+".new", path)
}

// Load reads the state of the cluster in dir.
func Load(dir string) (*State, error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	s := &State{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read the cluster's state in %s: %w", dir, err)
	}
	if len(s.ID) != 8 || s.Dir == "" || s.Root == "" {
		return nil, fmt.Errorf("%s is not the state of a cluster", filepath.Join(dir, stateFile))
	}
	return s, nil
}

// List returns the clusters registered below root, sorted by ID.
func List(root string) ([]*State, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var states []*State
	for _, e := range entries {
		if len(e.Name()) != 8 {
			continue
		}
		s, err := Load(filepath.Join(root, e.Name()))
		if err != nil {
			continue // half registered: nothing was made yet, or nothing is left
		}
		states = append(states, s)
	}
	sort.Slice(states, func(i, j int) bool { return states[i].ID < states[j].ID })
	return states, nil
}

// Cgroup is the cluster's control group, relative to the root of each hierarchy.
func (s *State) Cgroup() string { return "/" + cgroupPrefix + s.ID }

// Link is the name of a network link of the cluster; every link of the cluster
// begins with Link(""), and stays below the kernel's 15 characters.
func (s *State) Link(suffix string) string { return "bt" + s.ID + suffix }

// Environment is what marks a process as the cluster's, and as the named part of it.
func (s *State) Environment(component string) []string {
	return []string{idVariable + "=" + s.ID, componentVariable + "=" + component}
}

// lock serializes the clusters of a checkout while they choose what must differ
// between them, and while they look whether they are the last.
func lock(root string) (unlock func(), err error) { return LockFile(filepath.Join(root, "lock")) }

// LockFile waits until no other process has the lock of the file. It makes the file if there is none.
func LockFile(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// freeSubnet returns a /24 that neither a link of this machine nor another cluster uses.
func freeSubnet(others []*State) (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list the addresses of this machine: %w", err)
	}
	taken := map[string]bool{}
	for _, o := range others {
		taken[o.Subnet] = true
	}
	for i := range 64 {
		candidate := fmt.Sprintf("10.217.%d.0/24", i)
		_, subnet, err := net.ParseCIDR(candidate)
		if err != nil {
			return "", err
		}
		used := taken[candidate]
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && (subnet.Contains(n.IP) || n.Contains(subnet.IP)) {
				used = true
			}
		}
		if !used {
			return candidate, nil
		}
	}
	return "", errors.New("no free subnet for the nodes below 10.217.0.0/18: stop other local clusters, or remove the address that covers it")
}

// originalSysctls returns the settings as they were before the first kubelet of any
// cluster: when another cluster is up they are already changed, but it knows them.
func originalSysctls(others []*State) (map[string]string, error) {
	for _, o := range others {
		if len(o.Sysctls) > 0 {
			return o.Sysctls, nil
		}
	}
	values := map[string]string{}
	for _, name := range changedByKubelet {
		v, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return nil, fmt.Errorf("read the kernel setting %s: %w", name, err)
		}
		values[name] = string(v)
	}
	return values, nil
}
