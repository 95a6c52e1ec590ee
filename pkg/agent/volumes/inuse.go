package volumes

import "github.com/berthdev/berth/pkg/agent/mounts"

// describeUse describes what uses the device, as far as the mount table shows it. It is empty if nothing does. A
// process that has the device open exclusively is not in the table, but it keeps the device from being wiped, too.
// Nothing uses a volume that has no device.
func describeUse(device string) (string, error) {
	if device == "" {
		return "", nil
	}
	at, err := mounts.OfDevice(device)
	if err != nil {
		return "", err
	}
	if len(at) > 0 {
		return "it is mounted on " + at[0].Mountpoint, nil
	}
	// A raw block volume is published by mounting its device node on a file.
	binds, err := mounts.BindsOfDevice(device)
	if err != nil {
		return "", err
	}
	if len(binds) > 0 {
		return "its device is published on " + binds[0].Mountpoint, nil
	}
	return "", nil
}

// isDeviceMounted reports whether the device is mounted anywhere that the agent can see. A mount that it cannot see
// keeps the device busy, and then the engine refuses to wipe it.
func isDeviceMounted(device string) (bool, error) {
	if device == "" {
		return false, nil
	}
	found, err := mounts.OfDevice(device)
	return len(found) > 0, err
}
