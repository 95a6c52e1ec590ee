//go:build linux

package main

import (
	"context"
	"errors"

	"github.com/berthdev/berth/test/vm/wire"
)

func (g *guest) burst(ctx context.Context, b wire.Burst, event func(any)) error {
	return errors.New("not yet")
}
