package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitor is a QMP connection to qemu.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

// message is a message of qemu: an event, or the result of a command.
type message struct {
	Event string
	Data  struct {
		Device string
		Path   string
	}
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
}

func newMonitor(conn net.Conn) (*monitor, error) {
	q := &monitor{conn: conn, in: json.NewDecoder(conn)}
	var greeting struct{ QMP json.RawMessage }
	if err := q.in.Decode(&greeting); err != nil {
		return nil, fmt.Errorf("greeting of qemu's monitor: %w", err)
	}
	return q, q.execute("qmp_capabilities", nil)
}

func (q *monitor) execute(command string, arguments any) error {
	c := map[string]any{"execute": command}
	if arguments != nil {
		c["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(c); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var m message
		if err := q.in.Decode(&m); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if m.Error != nil {
			return fmt.Errorf("%s: %s", command, m.Error.Desc)
		}
		if m.Event == "" {
			return nil
		}
	}
}

// unplug unplugs a device and waits until the guest's kernel has released it.
func (q *monitor) unplug(ctx context.Context, id string) error {
	if err := q.execute("device_del", map[string]string{"id": id}); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := q.conn.SetReadDeadline(deadline); err != nil {
			return err
		}
		defer func() { _ = q.conn.SetReadDeadline(time.Time{}) }()
	}
	for {
		var m message
		if err := q.in.Decode(&m); err != nil {
			return fmt.Errorf("waiting until %s is unplugged: %w", id, err)
		}
		if m.Event == "DEVICE_DELETED" && m.Data.Device == id {
			return nil
		}
	}
}

// plug plugs an unplugged disk in again.
func (q *monitor) plug(d drive) error { return q.execute("device_add", d.frontend()) }
