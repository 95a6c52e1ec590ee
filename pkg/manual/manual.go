// Package manual says where the documentation explains what Berth reports. Agent and scheduler append that to their
// events.
package manual

import "strings"

// Troubleshooting is the address of the page that explains events. It has a heading for each reason.
const Troubleshooting = "https://github.com/berthdev/berth/blob/main/docs/troubleshoot.md"

// Pointer returns the end of an event's message: where its reason is explained.
func Pointer(reason string) string {
	return "; see " + Troubleshooting + "#" + strings.ToLower(reason)
}
