package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/fleet"
	"github.com/berthdev/berth/test/units"
)

// workload is a kind of pods, and the scheduler that places them.
type workload struct {
	// letter is the workload's name in tables.
	letter, name string
	// pods is the number of pods of a burst.
	pods int
	pod  func(name string) *corev1.Pod
	// class is the StorageClass of the claim that each pod has. It is empty for pods without.
	class string
	// volumes is the number of Berth's volumes of a pod.
	volumes int
	scheduler
}

// scheduler is a program that is started for a turn.
type scheduler struct {
	process string
	start   func(context.Context) error
	stop    func() error
}

// stockProcess is the cluster's name for Kubernetes' own scheduler.
const stockProcess = "kube-scheduler"

func (s *settings) workloads(c *cluster.Cluster) []workload {
	stock := scheduler{stockProcess, c.StartStockScheduler, c.StopStockScheduler}
	berth := scheduler{"scheduler", c.StartScheduler, c.StopScheduler}
	plain := func(profile string) func(string) *corev1.Pod {
		return func(string) *corev1.Pod { return fleet.PlainPod(profile) }
	}
	disks := func(sizes ...int64) func(string) *corev1.Pod {
		return func(string) *corev1.Pod { return fleet.DiskPod(sizes...) }
	}
	claim := func(profile string) func(string) *corev1.Pod {
		return func(name string) *corev1.Pod { return fleet.ClaimPod(profile, name) }
	}
	return []workload{
		{letter: "a", name: "stock, no volumes", pods: s.pods, pod: plain(corev1.DefaultSchedulerName), scheduler: stock},
		{letter: "p", name: "Berth's scheduler, profile default-scheduler, no volumes", pods: s.pods, pod: plain(corev1.DefaultSchedulerName), scheduler: berth},
		{letter: "b", name: "Berth, an inline volume", pods: s.pods, pod: disks(10 * units.GiB), volumes: 1, scheduler: berth},
		{letter: "c", name: "Berth, three inline volumes", pods: s.pods, pod: disks(5*units.GiB, 10*units.GiB, 20*units.GiB), volumes: 3, scheduler: berth},
		{letter: "d", name: "Berth, a claim", pods: s.claims, pod: claim(fleet.Profile), class: diskv1alpha1.DriverName, volumes: 1, scheduler: berth},
		{letter: "e", name: "stock, a claim, CSIStorageCapacity", pods: s.capacityPods, pod: claim(corev1.DefaultSchedulerName), class: fleet.CapacityProvisioner, scheduler: stock},
	}
}
