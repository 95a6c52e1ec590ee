package disk

import "strings"

// IsVolumeMap reports whether a device-mapper device with that UUID is a volume of one of our disks.
func IsVolumeMap(uuid string) bool {
	return strings.HasPrefix(uuid, dmUUIDPrefix) || strings.HasPrefix(uuid, linearUUIDPrefix)
}

// IsVolumeLoop reports whether a loop device with that backing file is a volume of one of our disks.
func IsVolumeLoop(backing string) bool { return strings.HasPrefix(backing, loopFilePrefix) }
