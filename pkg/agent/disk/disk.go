package disk

import (
	"context"
	"errors"

	"github.com/berthdev/berth/pkg/extent"
)

// State says what Inspect found on a device.
type State string

const (
	Blank   State = "Blank"
	Ours    State = "Ours"
	Foreign State = "Foreign"
	Busy    State = "Busy"
)

// Contents is what Inspect found on a device.
type Contents struct {
	State  State
	ID     string
	Reason string
}

// Options of Open.
type Options struct {
	OnChange func()
	Known    func(id string) bool
}

// Disk is an open disk.
type Disk struct{}

var errNotYet = errors.New("not implemented yet")

func Inspect(ctx context.Context, path string) (Contents, error)      { return Contents{}, errNotYet }
func Initialize(ctx context.Context, path string) (string, error)     { return "", errNotYet }
func Open(ctx context.Context, path string, o Options) (*Disk, error) { return nil, errNotYet }
func (d *Disk) Snapshot() Snapshot                                    { return Snapshot{} }
func (d *Disk) Create(ctx context.Context, partition, name string, e extent.Extent, ephemeral bool) (Volume, error) {
	return Volume{}, errNotYet
}
func (d *Disk) MarkFormatted(ctx context.Context, partition string) error { return errNotYet }
func (d *Disk) Wipe(ctx context.Context, partition string) error          { return errNotYet }
func (d *Disk) Close() error                                              { return nil }
