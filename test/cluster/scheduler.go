package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"sigs.k8s.io/yaml"
)

const schedulerName = "scheduler"

// startSchedulers runs those that the options ask for.
func (c *Cluster) startSchedulers(ctx context.Context) error {
	if c.options.Scheduler {
		if err := c.StartScheduler(ctx); err != nil {
			return err
		}
	}
	if c.options.StockScheduler {
		return c.StartStockScheduler(ctx)
	}
	return nil
}

const stockSchedulerName = "kube-scheduler"

// StartStockScheduler runs Kubernetes' own scheduler, and returns when it is up.
func (c *Cluster) StartStockScheduler(ctx context.Context) error {
	err := c.authority.kubeconfig(c.schedulerKubeconfig(stockSchedulerName), c.server, "system:"+stockSchedulerName)
	if err != nil {
		return err
	}
	return c.startScheduler(ctx, stockSchedulerName, filepath.Join(c.bin, stockSchedulerName), "")
}

// StopStockScheduler ends it in good order.
func (c *Cluster) StopStockScheduler() error { return c.end(stockSchedulerName, syscall.SIGTERM) }

// StartScheduler runs cmd/scheduler with the cluster's kubeconfig, and returns when
// it is up.
func (c *Cluster) StartScheduler(ctx context.Context) error {
	return c.StartSchedulerNamed(ctx, schedulerName)
}

// StopScheduler ends the scheduler in good order.
func (c *Cluster) StopScheduler() error { return c.end(schedulerName, syscall.SIGTERM) }

// KillScheduler ends the scheduler as a crash would.
func (c *Cluster) KillScheduler() error { return c.end(schedulerName, syscall.SIGKILL) }

// StartSchedulerNamed runs one more scheduler, which does not know of the others.
func (c *Cluster) StartSchedulerNamed(ctx context.Context, name string) error {
	return c.StartSchedulerConfigured(ctx, name, c.options.SchedulerConfig)
}

// StartSchedulerConfigured is StartSchedulerNamed with another KubeSchedulerConfiguration: a
// path that is absolute, or relative to the repository.
func (c *Cluster) StartSchedulerConfigured(ctx context.Context, name, config string) error {
	if !filepath.IsAbs(config) {
		config = filepath.Join(c.repository, config)
	}
	path, err := c.program(ctx, schedulerProgram)
	if err != nil {
		return err
	}
	if err := c.Install(ctx); err != nil {
		return err
	}
	err = c.accountKubeconfig(ctx, c.schedulerKubeconfig(name), "berth-scheduler", "")
	if err != nil {
		return err
	}
	return c.startScheduler(ctx, name, path, config, c.options.SchedulerArgs...)
}

// KillSchedulerNamed ends a scheduler that StartSchedulerNamed started.
func (c *Cluster) KillSchedulerNamed(name string) error { return c.end(name, syscall.SIGKILL) }

// StopSchedulerNamed ends it in good order.
func (c *Cluster) StopSchedulerNamed(name string) error { return c.end(name, syscall.SIGTERM) }

// startScheduler adapts the configuration that a cluster in earnest uses: another
// kubeconfig, and no waiting for a lease.
func (c *Cluster) startScheduler(ctx context.Context, name, program, config string, more ...string) error {
	kubeconfig := c.schedulerKubeconfig(name)
	settings := map[string]any{"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"}
	if config != "" {
		data, err := os.ReadFile(config)
		if err != nil {
			return err
		}
		if err := yaml.Unmarshal(data, &settings); err != nil {
			return fmt.Errorf("read %s: %w", config, err)
		}
	}
	connection, _ := settings["clientConnection"].(map[string]any)
	if connection == nil {
		connection = map[string]any{"qps": 1000, "burst": 2000}
	}
	connection["kubeconfig"] = kubeconfig
	settings["clientConnection"] = connection
	settings["leaderElection"] = map[string]any{"leaderElect": false}
	data, err := yaml.Marshal(settings)
	if err != nil {
		return err
	}
	adapted := filepath.Join(c.state.Dir, name+".yaml")
	if err := os.WriteFile(adapted, data, 0o644); err != nil {
		return err
	}
	port, err := freePort(c.address)
	if err != nil {
		return err
	}
	p, err := c.run(name, append([]string{
		program, "--config=" + adapted,
		"--bind-address=" + c.address.String(), "--secure-port=" + strconv.Itoa(port),
		"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--v=2",
	}, more...)...)
	if err != nil {
		return err
	}
	// It serves with a certificate that it makes itself.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	return waitFor(ctx, p, func(ctx context.Context) error {
		return get(ctx, client, fmt.Sprintf("https://%s:%d/readyz", c.address, port))
	})
}

func (c *Cluster) schedulerKubeconfig(name string) string {
	return filepath.Join(c.state.Dir, name+".kubeconfig")
}
