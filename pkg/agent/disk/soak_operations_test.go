package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

func (s *soak) create() (soakOperation, bool) {
	return s.planCreate("create", false)
}

func (s *soak) createRaw() (soakOperation, bool) {
	return s.planCreate("create raw", true)
}

func (s *soak) planCreate(name string, raw bool) (soakOperation, bool) {
	e, ok := s.reserveExtent(1 + s.random.Int64N(3))
	if !ok || len(s.volumes) >= 16 {
		return soakOperation{}, false
	}
	o := CreateOptions{Partition: s.guid(), Name: fmt.Sprintf("soak/%d", s.done), Extent: e, Raw: raw, Ephemeral: s.random.IntN(2) == 0}
	if s.random.IntN(3) > 0 {
		o.Note = strings.Repeat("note ", s.random.IntN(100))
	}
	var v Volume
	return soakOperation{name, func() (err error) {
		v, err = s.d.Create(s.ctx, o)
		return err
	}, func(err error) {
		s.must(err)
		want := Volume{Partition: o.Partition, Name: o.Name, Note: o.Note, Extent: e, Ephemeral: o.Ephemeral, Raw: raw, Phase: Reserved, Index: v.Index}
		if raw {
			want.Phase = Formatted
			s.wantZeros(e)
			s.knownZero = s.knownZero.Add(e)
		}
		if v.Prezeroed && !s.knownZero.Contains(e) {
			s.fatalf("%+v is not known to be zero", v)
		}
		s.knownZero = s.knownZero.Remove(e)
		s.highest = max(s.highest, v.Index)
		s.volumes[v.Partition] = &soakVolume{Volume: want}
	}}, true
}

func (s *soak) createAgain() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return true })
	if v == nil {
		return soakOperation{}, false
	}
	return soakOperation{"create again", func() error {
		got, err := s.d.Create(s.ctx, CreateOptions{Partition: v.Partition, Name: v.Name, Extent: v.Extent, Raw: v.Raw, Note: "another"})
		if err == nil && (got.Extent != v.Extent || got.Phase != v.Phase || got.Index != v.Index) {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	}, func(err error) {
		if !v.Phase.HasDevice() {
			s.mustBe(err, ErrInUse)
		} else {
			s.must(err)
		}
	}}, true
}

// overlap requests space that is taken.
func (s *soak) overlap() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return true })
	if v == nil {
		return soakOperation{}, false
	}
	e := extent.New(v.Extent.End-units.MiB, 2*units.MiB)
	if s.random.IntN(4) == 0 {
		e = extentMiB(soakVolumesEnd-1, 2) // into a foreign partition
	}
	o := CreateOptions{Partition: s.guid(), Extent: e, Raw: s.random.IntN(2) == 0}
	return soakOperation{"overlap", func() error {
		_, err := s.d.Create(s.ctx, o)
		return err
	}, func(err error) { s.mustBe(err, ErrOverlap) }}, true
}

// format makes something on a new volume, or fails.
func (s *soak) format() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.Phase == Reserved })
	if v == nil {
		return soakOperation{}, false
	}
	data, fails, mark := s.pattern(v.Extent.Len()), s.random.IntN(4) == 0, s.random.IntN(2) == 0
	device := s.device(v)
	return soakOperation{"format", func() error {
		err := s.d.Format(s.ctx, v.Partition, func(context.Context) error {
			if fails {
				return errInjected
			}
			return writeDevice(device, data, 0)
		})
		if err == nil && mark {
			err = s.d.MarkFormatted(s.ctx, v.Partition)
		}
		return err
	}, func(err error) {
		if fails {
			s.mustBe(err, errInjected)
			return
		}
		s.must(err)
		copy(s.want[v.Extent.Start:v.Extent.End], data)
		if mark {
			v.Phase = Formatted
		}
	}}, true
}

// mkfs makes a real file system.
func (s *soak) mkfs() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.Phase == Reserved && v.Extent.Len() >= 2*units.MiB })
	if v == nil {
		return soakOperation{}, false
	}
	device := s.device(v)
	return soakOperation{"mkfs", func() error {
		return errors.Join(s.d.Format(s.ctx, v.Partition, func(context.Context) error {
			return tryProgram("mkfs.ext4", "-q", "-F", "-U", v.Partition, device)
		}), s.d.MarkFormatted(s.ctx, v.Partition))
	}, func(err error) {
		s.must(err)
		s.acceptActual(v.Extent)
		v.Phase, v.ext4 = Formatted, true
	}}, true
}

func (s *soak) markFormatted() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return true })
	if v == nil {
		return soakOperation{}, false
	}
	return soakOperation{"mark", func() error { return s.d.MarkFormatted(s.ctx, v.Partition) }, func(err error) {
		if !v.Phase.HasDevice() {
			s.mustBe(err, ErrInUse)
			return
		}
		s.must(err)
		v.Phase = Formatted
	}}, true
}

// write writes as the user of a volume does.
func (s *soak) write() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.Phase == Formatted && v.mounted == "" })
	if v == nil {
		return soakOperation{}, false
	}
	const unit = 4096
	off := s.random.Int64N(v.Extent.Len()/unit) * unit
	data := s.pattern(min(unit*(1+s.random.Int64N(64)), v.Extent.Len()-off))
	device := s.device(v)
	return soakOperation{"write", func() error { return writeDevice(device, data, off) }, func(err error) {
		s.must(err)
		copy(s.want[v.Extent.Start+off:], data)
		v.ext4 = false
	}}, true
}

func (s *soak) mount() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.ext4 && v.Phase == Formatted && v.mounted == "" })
	if v == nil {
		return soakOperation{}, false
	}
	device, target := s.device(v), filepath.Join(s.dir, v.Partition)
	return soakOperation{"mount", func() error {
		if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := unix.Mount(device, target, "ext4", 0, ""); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(target, "file"), bytes.Repeat([]byte(v.Partition), 1000), 0o600)
	}, func(err error) {
		s.must(err)
		v.mounted = target
	}}, true
}

func (s *soak) unmount() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.mounted != "" })
	if v == nil {
		return soakOperation{}, false
	}
	device := s.device(v)
	return soakOperation{"unmount", func() error {
		got, err := os.ReadFile(filepath.Join(v.mounted, "file"))
		if err == nil && !bytes.Equal(got, bytes.Repeat([]byte(v.Partition), 1000)) {
			err = errors.New("the file is not what was written")
		}
		return errors.Join(err, unmountIdle(v.mounted, device))
	}, func(err error) {
		s.must(err)
		v.mounted = ""
		s.acceptActual(v.Extent)
	}}, true
}

// unmountIdle unmounts a volume and waits until no process has it open. A child that was forked while its file was read
// keeps it open until it executes its own program. A child with its own mount namespace may have a copy of the mount.
func unmountIdle(target, device string) error {
	err := await(context.Background(), lockTimeout, func() (bool, error) {
		err := unix.Unmount(target, 0)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return await(context.Background(), lockTimeout, func() (bool, error) {
		f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		if err == nil {
			err = f.Close()
		}
		return err == nil, err
	})
}

func (s *soak) grow() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.Phase.HasDevice() && v.Extent.Len() < 8*units.MiB })
	if v == nil {
		return soakOperation{}, false
	}
	tail := extent.New(v.Extent.End, (1+s.random.Int64N(3))*units.MiB)
	if !s.unclaimed().Contains(tail) {
		return soakOperation{}, false
	}
	s.claimed = s.claimed.Add(tail)
	return soakOperation{"grow", func() error {
		got, err := s.d.Grow(s.ctx, v.Partition, tail.End-v.Extent.Start)
		if err == nil && got.Extent.End != tail.End {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	}, func(err error) {
		s.must(err)
		v.Extent.End = tail.End
		s.wantZeros(tail)
		s.knownZero = s.knownZero.Remove(tail)
	}}, true
}

func (s *soak) growTooFar() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.Phase.HasDevice() })
	if v == nil {
		return soakOperation{}, false
	}
	return soakOperation{"grow too far", func() error {
		_, err := s.d.Grow(s.ctx, v.Partition, (soakVolumesEnd+1)*units.MiB-v.Extent.Start)
		return err
	}, func(err error) { s.mustBe(err, ErrOverlap) }}, true
}

func (s *soak) wipe() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.mounted == "" || s.random.IntN(4) == 0 })
	if v == nil {
		return soakOperation{}, false
	}
	policy := []WipePolicy{WipeZero, WipeZero, WipeOverwrite, WipeSecureDiscard, WipeNone}[s.random.IntN(5)]
	if v.mounted != "" {
		return soakOperation{"wipe of mounted", func() error {
			_, err := s.d.Wipe(s.ctx, v.Partition, WipeOptions{Policy: policy})
			return err
		}, func(err error) { s.mustBe(err, ErrInUse) }}, true
	}
	var record WipeResult
	return soakOperation{"wipe " + string(policy), func() (err error) {
		record, err = s.d.Wipe(s.ctx, v.Partition, WipeOptions{Policy: policy})
		return err
	}, func(err error) {
		s.must(err)
		if record.Extent != v.Extent || record.Partition != v.Partition || record.Verified != (policy != WipeNone) {
			s.fatalf("the record of the wipe of %+v is %+v", v, record)
		}
		s.removeVolume(v, policy)
	}}, true
}

// interruptWipe is canceled as soon as something of the volume was overwritten.
func (s *soak) cutWipe() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.mounted == "" })
	if v == nil {
		return soakOperation{}, false
	}
	ctx, cancel := context.WithCancel(s.ctx)
	return soakOperation{"cut wipe", func() error {
		defer cancel()
		_, err := s.d.Wipe(ctx, v.Partition, WipeOptions{Policy: WipeOverwrite, Progress: func(int64) { cancel() }})
		return err
	}, func(err error) {
		if err == nil {
			s.removeVolume(v, WipeOverwrite)
			return
		}
		s.mustBe(err, context.Canceled)
		s.acceptActual(v.Extent)
		v.Phase, v.ext4, v.Wipe = Wiping, false, WipeSettings{Policy: WipeOverwrite}
	}}, true
}

// heldWipe tries to wipe a volume that a process has open exclusively.
func (s *soak) heldWipe() (soakOperation, bool) {
	v := s.pickVolume(func(v *soakVolume) bool { return v.mounted == "" && v.Phase.HasDevice() })
	if v == nil {
		return soakOperation{}, false
	}
	device := s.device(v)
	return soakOperation{"held wipe", func() error {
		holder, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			return err
		}
		defer holder.Close()
		_, err = s.d.Wipe(s.ctx, v.Partition, WipeOptions{})
		return err
	}, func(err error) { s.mustBe(err, ErrInUse) }}, true
}

// move moves a volume, perhaps into more space, or takes up a move.
func (s *soak) move() (soakOperation, bool) {
	v, o, possible := s.planMove()
	if !possible {
		return soakOperation{}, false
	}
	if v.mounted != "" {
		return soakOperation{"move of mounted", func() error {
			_, err := s.d.Move(s.ctx, o)
			return err
		}, func(err error) { s.mustBe(err, ErrInUse) }}, true
	}
	name := "move"
	if s.volumes[o.Copy] != nil {
		name = "move on"
	}
	var moved Volume
	return soakOperation{name, func() (err error) {
		moved, err = s.d.Move(s.ctx, o)
		return err
	}, func(err error) {
		s.must(err)
		s.switchVolume(v, o, moved.Index)
	}}, true
}

// cutMove is what a move leaves that ends after its first bytes. The volumes are too short to cut a real one.
func (s *soak) cutMove() (soakOperation, bool) {
	v, o, possible := s.planMove()
	if !possible || v.mounted != "" {
		return soakOperation{}, false
	}
	junk := s.pattern(units.MiB)
	return soakOperation{"cut move", func() error {
		err := s.d.runInWorker(s.ctx, func(ctx context.Context) error {
			e, err := s.d.store.table.volume(o.Partition)
			if err == nil {
				_, _, _, err = s.d.ensureTarget(ctx, e, o)
				s.d.publish()
			}
			return err
		})
		if err != nil {
			return err
		}
		_, err = s.d.device.WriteAt(junk, o.Extent.Start)
		return err
	}, func(err error) {
		s.must(err)
		copy(s.want[o.Extent.Start:], junk)
		s.knownZero = s.knownZero.Remove(o.Extent)
		if s.volumes[o.Copy] != nil {
			return
		}
		found, _ := ptr(s.d.Snapshot()).Volume(o.Copy)
		c := v.Volume
		c.Partition, c.Extent, c.Phase, c.Note, c.Index = o.Copy, o.Extent, Copying, "", found.Index
		s.highest = max(s.highest, c.Index)
		s.volumes[o.Copy] = &soakVolume{Volume: c}
	}}, true
}

// planMove chooses a volume and a place for it: that of its copy, if there is one.
func (s *soak) planMove() (*soakVolume, MoveOptions, bool) {
	fits := func(v *soakVolume) bool {
		c := s.volumes[copyOf(v.Partition)]
		return v.Phase == Formatted && (c == nil || c.Phase == Copying && c.Extent.Len() >= v.Extent.Len() && !s.claimedVolumes[c.Partition])
	}
	v := s.pickVolume(fits)
	if v == nil {
		return nil, MoveOptions{}, false
	}
	o := MoveOptions{Partition: v.Partition, Copy: copyOf(v.Partition)}
	s.claimedVolumes[o.Copy] = true
	if c := s.volumes[o.Copy]; c != nil {
		o.Extent = c.Extent
		return v, o, true
	}
	var ok bool
	o.Extent, ok = s.reserveExtent(v.Extent.Len()/units.MiB + s.random.Int64N(2))
	return v, o, ok && len(s.volumes) < 16
}

// switchVolume is a move in the model.
func (s *soak) switchVolume(v *soakVolume, o MoveOptions, index int) {
	old := v.Volume
	old.Partition, old.Phase, old.Note = o.Copy, Wiping, ""
	s.volumes[o.Copy] = &soakVolume{Volume: old}
	n := copy(s.want[o.Extent.Start:o.Extent.End], s.want[v.Extent.Start:v.Extent.End])
	s.wantZeros(extent.Extent{Start: o.Extent.Start + int64(n), End: o.Extent.End})
	s.knownZero = s.knownZero.Remove(o.Extent)
	v.Extent, v.Index = o.Extent, index
	s.highest = max(s.highest, index)
}

func (s *soak) checkDisk() (soakOperation, bool) {
	return soakOperation{"check", func() error { return s.d.Check(s.ctx) }, s.must}, true
}

// writeDevice writes to a volume, as its user would.
func writeDevice(device string, data []byte, off int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	// Closing writes back the cache only if no other process has the device open. A program that is being started may
	// have it open for a moment.
	return errors.Join(err, f.Sync(), f.Close())
}

// pickVolume chooses a volume that no operation uses in this round, and reserves it.
func (s *soak) pickVolume(fits func(*soakVolume) bool) *soakVolume {
	var guids []string
	for guid, v := range s.volumes {
		if !s.claimedVolumes[guid] && fits(v) {
			guids = append(guids, guid)
		}
	}
	if len(guids) == 0 {
		return nil
	}
	slices.Sort(guids)
	guid := guids[s.random.IntN(len(guids))]
	s.claimedVolumes[guid] = true
	return s.volumes[guid]
}
