package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// Lineage distinguishes an API server that lost its data, or was restored to older data, from one that was only away.
// It keeps the newest version of the node's NodeDiskCapacity that the API server answered with, in a file beside the
// agent's socket. An answer causes a doubt if it is older than what was known when the request was sent, or if it is
// about another object.
//
// A lineage without a file is a doubt, too: there is nothing to compare with. The file is replaced, not synced. After a
// power cut it may be some seconds old, and its proof is as old.
type Lineage struct {
	path  string
	clock clock.PassiveClock

	mu    sync.Mutex
	state lineageState
	// doubtSince is when this process began to doubt.
	doubtSince time.Time
	// hasAnswer is set when the API server itself has answered once.
	hasAnswer bool
}

// lineageState is the content of the file.
type lineageState struct {
	// Capacity is the UID of the node's NodeDiskCapacity, and ResourceVersion its newest version.
	Capacity        types.UID `json:"capacity,omitempty"`
	ResourceVersion string    `json:"resourceVersion,omitempty"`
	// Node is the UID of the Node.
	Node types.UID `json:"node,omitempty"`
	// Doubt says why the API server's data may have been lost or restored. It is empty if there is no doubt.
	Doubt string `json:"doubt,omitempty"`
}

// minDoubtTime is how long a doubt lasts at least. Objects that vanished with the data of an API server are noticed one
// by one, some of them late.
const minDoubtTime = time.Hour

// doubtNoRecord is the doubt of a new lineage.
const doubtNoRecord = "this node has no record of the API server's data from before"

// newLineage returns a new lineage. Without a path it is not kept after the process.
func newLineage(path string, c clock.PassiveClock) *Lineage {
	return &Lineage{path: path, clock: c, state: lineageState{Doubt: doubtNoRecord}, doubtSince: c.Now()}
}

// OpenLineage reads the file.
func OpenLineage(path string, c clock.PassiveClock) (*Lineage, error) {
	l := newLineage(path, c)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what the node knows of the API server: %w", err)
	}
	// A damaged file counts as none: the API server's next answer is its first.
	var k lineageState
	if json.Unmarshal(content, &k) == nil && k.Capacity != "" {
		l.state = k
	}
	return l, nil
}

// currentState returns what is known when a request is sent.
func (l *Lineage) currentState() lineageState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// canWrite reports whether the API server itself has answered once, or whether there is nothing that a write could
// hide.
func (l *Lineage) canWrite() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hasAnswer || l.state.Capacity == ""
}

// compareCapacity compares an answer with what was known when the request was sent. The answer is the NodeDiskCapacity,
// or that there is none. Other errors prove nothing.
func (l *Lineage) compareCapacity(ctx context.Context, before lineageState, ndc *diskv1alpha1.NodeDiskCapacity, err error) {
	if err != nil && !apierrors.IsNotFound(err) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasAnswer = true
	doubt := ""
	next := l.state
	switch {
	case err != nil && before.Capacity != "":
		doubt = "the API server has no NodeDiskCapacity of this node, and had one"
	case err != nil:
	case before.Capacity != "" && ndc.UID != before.Capacity:
		doubt = "the NodeDiskCapacity of this node is another object than it was"
	case before.Capacity != "" && isOlder(ndc.ResourceVersion, before.ResourceVersion):
		doubt = "the NodeDiskCapacity of this node is older than it was"
	}
	if err == nil && (doubt != "" || next.Capacity != ndc.UID || !isOlder(ndc.ResourceVersion, next.ResourceVersion)) {
		next.Capacity, next.ResourceVersion = ndc.UID, ndc.ResourceVersion
	}
	l.setState(ctx, next, doubt)
}

// compareNode compares the Node with the one that was known.
func (l *Lineage) compareNode(ctx context.Context, uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next, doubt := l.state, ""
	if next.Node != "" && next.Node != uid {
		doubt = "the Node is another object than it was"
	}
	next.Node = uid
	l.setState(ctx, next, doubt)
}

// setState replaces what is known by next. The caller holds mu.
func (l *Lineage) setState(ctx context.Context, next lineageState, doubt string) {
	if doubt != "" {
		klog.FromContext(ctx).Info("The API server's data may not be what it was: orphans are not reclaimed if they are many", "reason", doubt)
		next.Doubt, l.doubtSince = doubt, l.clock.Now()
	}
	if next == l.state {
		return
	}
	l.state = next
	l.save(ctx)
}

// isOlder reports whether version a is older than b. A version that cannot be compared counts as older.
func isOlder(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || order < 0
}

// save replaces the file. If that fails it removes the file: one that is out of date would prove something false. The
// caller holds mu.
func (l *Lineage) save(ctx context.Context) {
	if l.path == "" {
		return
	}
	content, err := json.Marshal(l.state)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(l.path), 0o750), os.WriteFile(l.path+".new", content, 0o600), os.Rename(l.path+".new", l.path))
	}
	if err != nil {
		klog.FromContext(ctx).Error(errors.Join(err, os.RemoveAll(l.path)), "What the node knows of the API server could not be kept", "file", l.path)
	}
}

// endDoubt ends the doubt if it has lasted for long enough, and otherwise returns how much longer it lasts. The caller
// has found no orphan.
func (l *Lineage) endDoubt(ctx context.Context) (left time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Doubt == "" {
		return 0
	}
	if left = minDoubtTime - l.clock.Since(l.doubtSince); left > 0 {
		return left
	}
	if l.state.Capacity == "" {
		// There is nothing to compare with yet.
		return minDoubtTime
	}
	next := l.state
	next.Doubt = ""
	l.setState(ctx, next, "")
	return 0
}

// Doubt reads the NodeDiskCapacity and the Node from the API server, and says why its data may have been lost or
// restored. It is empty if there is no doubt.
func (c *Client) Doubt(ctx context.Context) (string, error) {
	if _, err := c.Capacity(ctx); err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("cannot ask the API server for NodeDiskCapacity %s: %w", c.node, err)
	}
	node, err := c.Node(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return "the API server has no Node " + c.node, nil
	case err != nil:
		return "", fmt.Errorf("cannot ask the API server for Node %s: %w", c.node, err)
	}
	c.lineage.compareNode(ctx, node.UID)
	return c.lineage.currentState().Doubt, nil
}

// EndDoubt is called when no volume of the node is an orphan: a doubt that is old enough ends. It returns how much
// longer a doubt lasts, or 0 if there is none.
func (c *Client) EndDoubt(ctx context.Context) (left time.Duration) { return c.lineage.endDoubt(ctx) }
