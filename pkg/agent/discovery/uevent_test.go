package discovery

import "testing"

// TestIsDiskEvent asserts that only events about whole block devices count.
func TestIsDiskEvent(t *testing.T) {
	for event, want := range map[string]bool{
		"add@/devices/x/block/sda\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=disk\x00":       true,
		"add@/devices/x/block/sda1\x00ACTION=add\x00SUBSYSTEM=block\x00DEVTYPE=partition\x00": false,
		"add@/devices/net/eth0\x00ACTION=add\x00SUBSYSTEM=net\x00":                            false,
		"bind@/devices/usb\x00ACTION=bind\x00SUBSYSTEM=usb\x00DEVTYPE=disk\x00":               false,
		"": false,
	} {
		if got := isDiskEvent([]byte(event)); got != want {
			t.Errorf("aboutDisk(%q) is %v", event, got)
		}
	}
}
