package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/test/cluster/host"
)

// Options say what to start. The zero value is a control plane: etcd and
// kube-apiserver.
type Options struct {
	// Name is for people; the logs are kept in .build/clusters/logs/<name>.
	Name string
	// Dir is the state directory: new or empty, and removed with the cluster. The
	// default is a new one below .build/clusters.
	Dir string
	// Log shows what happens; the default is silence.
	Log io.Writer

	// KubernetesVersion is the minor version of kube-apiserver and kube-controller-manager, one of KubernetesVersions.
	// The default is what the environment variable BERTH_KUBERNETES says, and without it the one that Berth is built
	// with, which is the only one for clusters with Kubelets.
	KubernetesVersion string

	// ControllerManager also runs kube-controller-manager. Kubelets need it.
	ControllerManager bool
	// Controllers are those that kube-controller-manager runs; the default is all. The start
	// waits for what serviceaccount-controller makes.
	Controllers []string
	// Kubelets runs containerd and a kubelet on every node.
	Kubelets bool
	// Nodes of the cluster. Without Kubelets a node is a Node object that is Ready, and
	// its disks.
	Nodes []NodeOptions

	// Manifests are files or directories that are applied when the API server is up,
	// relative to the repository.
	Manifests []string

	// Agents runs cmd/nodeagent on every node, Scheduler runs cmd/scheduler.
	Agents    bool
	Scheduler bool
	// AgentArgs are further flags of every agent.
	AgentArgs []string
	// AllDevices runs the agents without --devices. Nodes share the machine's devices, so only
	// DiskClasses with a node selector and exact paths say which disks are whose.
	AllDevices bool
	// Provisioners runs the stock external-provisioner beside every agent, as a sidecar of
	// its pod would, and ProvisionerArgs are its flags.
	Provisioners    bool
	ProvisionerArgs []string
	// APIServerArgs are further flags of kube-apiserver.
	APIServerArgs []string
	// SchedulerConfig is a KubeSchedulerConfiguration, relative to the repository; the
	// default is config/scheduler/kube-scheduler-config.yaml.
	SchedulerConfig string
	// SchedulerArgs are further flags of cmd/scheduler.
	SchedulerArgs []string
	// StockScheduler runs Kubernetes' own kube-scheduler, for comparison.
	StockScheduler bool
}

// NodeOptions describe a node.
type NodeOptions struct {
	// Name of the node; the default is node1, node2 and so on.
	Name   string
	Labels map[string]string
	Disks  []DiskOptions
	// KubeletDir is the kubelet's root directory; the default is /var/lib/kubelet.
	KubeletDir string
	// KubeletDirTarget makes KubeletDir a symbolic link to this folder.
	KubeletDirTarget string
}

// DiskOptions describe a disk: a loop device over a sparse file.
type DiskOptions struct {
	// Size in bytes.
	Size int64
	// SectorSize in bytes: 512 (the default) or 4096.
	SectorSize int
}

// Cluster is a running cluster.
type Cluster struct {
	options    Options
	log        io.Writer
	repository string
	bin        string
	release    release // of the control plane
	state      *host.State
	reaper     *reaper
	authority  *authority
	address    net.IP // where the control plane listens
	server     string // URL of the API server
	accountKey string // the key that signs service account tokens
	config     *rest.Config
	client     client.Client
	nodes      []*Node
	started    time.Time

	installing sync.Mutex
	installed  bool // guarded by installing

	mu        sync.Mutex // guards what follows
	processes map[string]*process
	built     map[string]bool // programs of this repository that are up to date
	stopped   bool
}

// Start builds what is missing and starts a cluster. When it fails it leaves
// nothing behind.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Name == "" {
		o.Name = "cluster"
	}
	if o.Kubelets {
		o.ControllerManager = true
	}
	if o.SchedulerConfig == "" {
		o.SchedulerConfig = "config/scheduler/kube-scheduler-config.yaml"
	}
	c := &Cluster{options: o, log: o.Log, processes: map[string]*process{}, built: map[string]bool{}, started: time.Now()}
	var err error
	if c.repository, err = Repository(); err != nil {
		return nil, err
	}
	if c.release, err = o.chooseRelease(); err != nil {
		return nil, err
	}
	if err := c.checkNodes(ctx); err != nil {
		return nil, err
	}
	c.bin = binDir(c.repository)
	// Before the clock starts; what is started later is built then.
	if o.Agents {
		c.built[agentProgram] = true
	}
	if o.Scheduler {
		c.built[schedulerProgram] = true
	}
	if err := Build(ctx, c.log, slices.Sorted(maps.Keys(c.built))...); err != nil {
		return nil, err
	}
	if c.release != today {
		if err := c.release.build(ctx, c.log, c.repository, o.ControllerManager); err != nil {
			return nil, err
		}
	}
	if o.Provisioners {
		if err := buildProvisioner(ctx, c.log, c.repository); err != nil {
			return nil, err
		}
	}
	if err := host.Sweep(ctx, clustersDir(c.repository), c.log); err != nil {
		return nil, err
	}
	c.started = time.Now()
	if c.state, err = host.New(host.Options{
		Root: clustersDir(c.repository), Dir: o.Dir, Name: o.Name, Nodes: o.Kubelets,
	}); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(c.LogDir(), 0o755); err != nil {
		return err
	}
	var err error
	if c.reaper, err = startReaper(c.bin, c.state.Dir, filepath.Join(c.LogDir(), "reaper.log")); err != nil {
		return err
	}
	c.say("starting; logs are in %s", c.LogDir())
	if c.address, err = c.chooseAddress(ctx); err != nil {
		return err
	}
	if c.authority, err = newAuthority(filepath.Join(c.state.Dir, "pki")); err != nil {
		return err
	}
	// Nodes have a good deal to do before they need an API server.
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.startControlPlane(groupCtx) })
	group.Go(func() error { return c.prepareNodes(groupCtx) })
	if err := group.Wait(); err != nil {
		return err
	}
	group, groupCtx = errgroup.WithContext(ctx)
	group.Go(func() error { return c.waitControllerManager(groupCtx) })
	group.Go(func() error { return c.startSchedulers(groupCtx) })
	group.Go(func() error { return c.startNodes(groupCtx) })
	return group.Wait()
}

// say prints what happened and how long after the start.
func (c *Cluster) say(format string, args ...any) {
	fmt.Fprintf(c.log, "%6.1fs  %s\n", time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

// Stop ends the cluster and removes everything that belongs to it. It may be called
// more than once.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		return nil
	}
	c.stopped = true
	c.mu.Unlock()
	// Not the caller's context: it may be what ended the cluster.
	ctx := context.Background()
	if c.options.Kubelets && c.client != nil {
		// For the sake of what pods hold (volumes above all). Clean-up copes with the rest.
		if err := c.drain(ctx); err != nil {
			c.say("pods were not deleted in good order: %v", err)
		}
	}
	err := c.state.Remove(ctx)
	c.reaper.dismiss()
	if err == nil {
		c.say("cluster removed")
	}
	return err
}

// Keep makes the cluster outlive this process; Down removes it.
func (c *Cluster) Keep() error {
	if err := c.state.Keep(); err != nil {
		return err
	}
	c.reaper.dismiss()
	return nil
}

// Down removes kept clusters with the given name that an earlier process started,
// and says whether there were any.
func Down(ctx context.Context, name string, log io.Writer) (found bool, err error) {
	repository, err := Repository()
	if err != nil {
		return false, err
	}
	states, err := host.List(clustersDir(repository))
	if err != nil {
		return false, err
	}
	for _, s := range states {
		if s.Name != name || !s.Kept {
			continue
		}
		found = true
		c := &Cluster{
			options: Options{Kubelets: s.Subnet != ""}, log: log, repository: repository, bin: binDir(repository),
			state: s, started: time.Now(), processes: map[string]*process{},
		}
		if err := c.connect(); err != nil {
			c.say("the API server can't be asked to delete pods: %v", err)
		}
		if err := c.Stop(); err != nil {
			return true, err
		}
	}
	return found, host.Sweep(ctx, clustersDir(repository), log)
}

// RESTConfig is for a client with every right and without a limit on requests.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client is a client with every right that knows the types of Kubernetes and Berth.
func (c *Cluster) Client() client.Client { return c.client }

// Kubeconfig is the path of a kubeconfig with every right.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.state.Dir, "kubeconfig") }

// Dir is the state directory.
func (c *Cluster) Dir() string { return c.state.Dir }

// LogDir holds one log a component.
func (c *Cluster) LogDir() string { return filepath.Join(c.state.Dir, "logs") }

// Program is the path of a program that was built for the cluster.
func (c *Cluster) Program(name string) string { return filepath.Join(c.bin, name) }

// Kubectl runs kubectl with every right and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "kubectl"), args...)
	cmd.Env = append(c.environment("kubectl"), "KUBECONFIG="+c.Kubeconfig())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// connect makes the clients from the admin's kubeconfig.
func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read the cluster's kubeconfig: %w", err)
	}
	config.QPS = -1
	c.config = config
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	if c.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	return nil
}

// run keeps a started process under its name.
func (c *Cluster) run(name string, argv ...string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.processes[name]; p != nil {
		select {
		case <-p.done:
		default:
			return nil, fmt.Errorf("start %s: it runs already", name)
		}
	}
	p, err := c.spawn(name, argv...)
	if err != nil {
		return nil, err
	}
	c.processes[name] = p
	return p, nil
}

// PID returns the process ID of a component, which is what its log is called:
// scheduler, kube-apiserver, agent-node1 and so on.
func (c *Cluster) PID(component string) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.processes[component]
	if p == nil {
		return 0, fmt.Errorf("%s was not started", component)
	}
	return p.cmd.Process.Pid, nil
}

// end stops a process (or kills it) and forgets it.
func (c *Cluster) end(name string, s syscall.Signal) error {
	c.mu.Lock()
	p := c.processes[name]
	delete(c.processes, name)
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("end %s: it was not started", name)
	}
	if s == syscall.SIGKILL {
		return p.kill()
	}
	return p.stop(20 * time.Second)
}

// reaper removes the cluster should this process die.
type reaper struct {
	cmd  *exec.Cmd
	pipe *os.File
}

func startReaper(bin, dir, logFile string) (*reaper, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r := &reaper{cmd: exec.Command(filepath.Join(bin, "reaper"), dir), pipe: write}
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = read, out, out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	return r, nil
}

// dismiss ends the reaper: there is nothing to do any more.
func (r *reaper) dismiss() {
	if r == nil {
		return
	}
	// An error means that it is gone, which is what is wanted.
	_, _ = r.pipe.Write([]byte{'.'})
	r.pipe.Close()
	_ = r.cmd.Wait()
}
