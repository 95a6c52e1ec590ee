package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// platter is a disk with a write cache, served over NBD. Writes stay in the cache until the guest flushes it, or
// requests a write-through. A power cut empties the cache: any part of its content may have reached the file, in any
// order.
type platter struct {
	file   *os.File // the medium
	size   int64
	sector int64
	listen net.Listener
	served sync.WaitGroup

	mu     sync.Mutex
	log    []cached         // what the cache holds, in the order of arrival
	newest map[int64][]byte // by sector, of the log; nil is a sector of zeros
	// Closed when the guest requests a flush, which is then never done. At that moment the cache is fullest.
	trap chan struct{}
	// Counts, so that a test can assert that its faults occurred.
	flushes, kept, dropped int
}

// cached is a write in the cache. One without data is of zeros.
type cached struct {
	off, length int64
	data        []byte
}

// newPlatter makes a disk of zeros in a sparse file and serves it on a socket beside it.
func newPlatter(path string, size, sector int64) (*platter, error) {
	p := &platter{size: size, sector: sector, newest: map[int64][]byte{}}
	var err error
	if p.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err = p.file.Truncate(size); err == nil {
		p.listen, err = net.Listen("unix", path+".nbd")
	}
	if err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	p.served.Go(p.accept)
	return p, nil
}

func (p *platter) socket() string { return p.listen.Addr().String() }

func (p *platter) close() error {
	err := p.listen.Close()
	p.served.Wait()
	return errors.Join(err, p.file.Close())
}

func (p *platter) accept() {
	for {
		conn, err := p.listen.Accept()
		if err != nil {
			return // closed
		}
		// The connection ends with the machine. A disk with several paths has several connections.
		p.served.Go(func() {
			defer conn.Close()
			if err := p.serve(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
				fmt.Fprintln(os.Stderr, "nbd:", err)
			}
		})
	}
}

// powerCut decides what happens to the cache when the power is cut. It must be called after qemu has ended. keep is how
// likely a sector of the cache is to reach the medium.
func (p *platter) powerCut(r *rand.Rand, keep float64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = nil
	for _, c := range p.log {
		for off := c.off; off < c.off+c.length; off += p.sector {
			if r.Float64() >= keep {
				p.dropped++
				continue
			}
			p.kept++
			one := cached{off: off, length: p.sector}
			if c.data != nil {
				one.data = c.data[off-c.off:][:p.sector]
			}
			if err := p.settle(one); err != nil {
				return err
			}
		}
	}
	p.forget()
	return nil
}

func (p *platter) forget() {
	p.log = nil
	clear(p.newest)
}

// settle writes to the medium.
func (p *platter) settle(c cached) error {
	if c.data != nil {
		_, err := p.file.WriteAt(c.data, c.off)
		return err
	}
	return unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, c.off, c.length)
}

// errTrapped says that the disk does not answer any more, because the power is about to be cut.
var errTrapped = errors.New("trapped")

// setTrap makes the disk stop at the next flush that would write something. The channel is closed then.
func (p *platter) setTrap() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = make(chan struct{})
	return p.trap
}

func (p *platter) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trap != nil && len(p.log) > 0 {
		close(p.trap)
		p.trap = nil
		return errTrapped
	}
	p.flushes++
	for _, c := range p.log {
		if err := p.settle(c); err != nil {
			return err
		}
	}
	p.forget()
	return nil
}

func (p *platter) write(c cached) error {
	if c.off < 0 || c.length < 0 || c.off+c.length > p.size || c.off%p.sector != 0 || c.length%p.sector != 0 {
		return unix.EINVAL
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, c)
	for off := int64(0); off < c.length; off += p.sector {
		var b []byte
		if c.data != nil {
			b = c.data[off:][:p.sector]
		}
		p.newest[c.off+off] = b
	}
	return nil
}

func (p *platter) read(b []byte, off int64) error {
	if off < 0 || off+int64(len(b)) > p.size || off%p.sector != 0 || int64(len(b))%p.sector != 0 {
		return unix.EINVAL
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.file.ReadAt(b, off); err != nil {
		return err
	}
	if len(p.newest) == 0 {
		return nil
	}
	for at := int64(0); at < int64(len(b)); at += p.sector {
		newest, ok := p.newest[off+at]
		switch {
		case !ok:
		case newest == nil:
			clear(b[at:][:p.sector])
		default:
			copy(b[at:], newest)
		}
	}
	return nil
}

// Numbers of the protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption      = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply = 0x0003e889045565a9
	nbdRequest     = 0x25609513
	nbdReply       = 0x67446698

	optionGo, optionAbort                                  = 7, 2
	replyAck, replyInfo                                    = 1, 3
	replyUnsupported                                       = 1<<31 + 1
	infoExport, infoBlockSize                              = 0, 3
	flagsFixedNoZeroes                                     = 1 | 2
	exportFlags                                            = 1 | 4 | 8 | 32 | 64 // flush, FUA, trim, write zeroes
	doRead, doWrite, doDisconnect, doFlush, doTrim, doZero = 0, 1, 2, 3, 4, 6
	throughCache                                           = 1 // FUA
	maxRequest                                             = 32 << 20
)

// serve speaks the NBD protocol with qemu until qemu disconnects.
func (p *platter) serve(conn net.Conn) error {
	put := func(v any) error { return binary.Write(conn, binary.BigEndian, v) }
	get := func(v any) error { return binary.Read(conn, binary.BigEndian, v) }
	err := put(struct {
		Magic, Option uint64
		Flags         uint16
	}{nbdMagic, nbdOption, flagsFixedNoZeroes})
	if err != nil {
		return err
	}
	var clientFlags uint32
	if err := get(&clientFlags); err != nil {
		return err
	}
	for chosen := false; !chosen; {
		var o struct {
			Magic          uint64
			Option, Length uint32
		}
		if err := get(&o); err != nil {
			return err
		}
		if o.Magic != nbdOption || o.Length > 1<<16 {
			return fmt.Errorf("option %+v makes no sense", o)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(o.Length)); err != nil {
			return err
		}
		answer := func(kind uint32, data any) error {
			length := uint32(0)
			if data != nil {
				length = uint32(binary.Size(data))
			}
			err := put(struct {
				Magic                uint64
				Option, Kind, Length uint32
			}{nbdOptionReply, o.Option, kind, length})
			if err == nil && data != nil {
				err = put(data)
			}
			return err
		}
		switch o.Option {
		case optionGo:
			err = errors.Join(answer(replyInfo, struct {
				Kind  uint16
				Size  uint64
				Flags uint16
			}{infoExport, uint64(p.size), exportFlags}), answer(replyInfo, struct {
				Kind                   uint16
				Least, Preferred, Most uint32
			}{infoBlockSize, uint32(p.sector), 4096, maxRequest}), answer(replyAck, nil))
			chosen = true
		case optionAbort:
			return answer(replyAck, nil)
		default:
			err = answer(replyUnsupported, nil)
		}
		if err != nil {
			return err
		}
	}
	return p.transmit(conn)
}

func (p *platter) transmit(conn net.Conn) error {
	for {
		var r struct {
			Magic          uint32
			Flags, Do      uint16
			Handle, Offset uint64
			Length         uint32
		}
		if err := binary.Read(conn, binary.BigEndian, &r); err != nil {
			return err
		}
		if r.Magic != nbdRequest {
			return fmt.Errorf("request %+v makes no sense", r)
		}
		var b []byte
		var err error
		off, length := int64(r.Offset), int64(r.Length)
		switch r.Do {
		case doRead, doWrite:
			if length > maxRequest {
				return fmt.Errorf("request %+v is too long", r)
			}
			b = make([]byte, length)
			if r.Do == doRead {
				err = p.read(b, off)
				break
			}
			if _, err := io.ReadFull(conn, b); err != nil {
				return err
			}
			err = p.write(cached{off, length, b})
			b = nil
		case doFlush:
			err = p.flush()
		case doTrim, doZero:
			err = p.write(cached{off: off, length: length})
		case doDisconnect:
			return nil
		default:
			err = unix.EINVAL
		}
		if err == nil && r.Flags&throughCache != 0 {
			// More than required: it flushes the whole cache. Only qemu's own requests cause that.
			err = p.flush()
		}
		if errors.Is(err, errTrapped) {
			_, err := io.Copy(io.Discard, conn)
			return err
		}
		reply := struct {
			Magic, Error uint32
			Handle       uint64
		}{nbdReply, 0, r.Handle}
		if err != nil {
			reply.Error, b = uint32(unix.EIO), nil
		}
		if err := binary.Write(conn, binary.BigEndian, reply); err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
	}
}
