//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/vm/wire"
)

// ownerOf is a node as the owner of a disk.
func ownerOf(node string) disk.Owner {
	return disk.Owner{NodeUID: "uid-of-" + node, NodeName: node, MachineID: "machine-of-" + node}
}

// cluster is a cluster with Nodes of these names, and without VolumeAttachments.
type cluster map[string]bool

func (c cluster) NodeNamed(_ context.Context, name string) (*disk.Owner, error) {
	if !c[name] {
		return nil, nil
	}
	o := ownerOf(name)
	return &o, nil
}

func (cluster) Attachments(context.Context) ([]discovery.Attachment, error) { return nil, nil }

// discover is one rescan by the agent of a node, with a class that takes the device, and returns the decision about it.
func discover(ctx context.Context, w wire.Discover) (verdict discovery.Verdict, err error) {
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "lun"}}
	class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptAutomatic, &metav1.Duration{}
	class.Spec.Devices.Paths = []string{w.Disk}
	nodes := cluster{w.Node: true}
	for _, n := range w.Others {
		nodes[n] = true
	}
	i := discovery.NewInventory(discovery.Options{
		Sys: os.DirFS("/sys/block"), Dev: "/dev", DevicePatterns: []string{w.Disk}, Changed: func() {},
		Classes:    func() []*diskv1alpha1.DiskClass { return []*diskv1alpha1.DiskClass{class} },
		NodeLabels: func() map[string]string { return nil },
		Owner:      func() disk.Owner { return ownerOf(w.Node) },
		Cluster:    nodes,
	})
	defer func() { err = errors.Join(err, i.Close()) }()
	if _, err := i.Rescan(ctx); err != nil {
		return discovery.Verdict{}, err
	}
	listed := i.Devices()
	if len(listed) != 1 {
		return discovery.Verdict{}, fmt.Errorf("the inventory has %d devices, want %s: %+v", len(listed), w.Disk, listed)
	}
	return listed[0].Verdict, nil
}
