package main

import (
	"regexp"
	"slices"
	"strings"
)

// coreTest is a test of test/integration, and those of its subtests that run here; all of them if none is named.
type coreTest struct {
	name     string
	subtests []string
}

// core says what is tried of each version: every way in which the scheduler, its controllers, the agent and the
// manifests in config meet the API server.
var core = []coreTest{
	{"TestScheduler", []string{
		"overcommit race", "two schedulers", "scheduler killed", "forged records", "plain pods", "reasons",
		"deletion wakes", "preemption", "both profiles", "rights",
	}},
	{"TestSchedulerPreempts", []string{"nomination is kept", "disruption budget"}},
	{"TestSchedulerClaims", []string{
		"one plan", "all or none", "writes", "other drivers", "bound claims", "generic ephemeral", "shared claim",
		"retained volume", "preemption", "half done", "killed", "claim deleted",
	}},
	{"TestSchedulerWithoutDefinitions", nil},
	{"TestProvisioner", []string{"placed by the stock scheduler", "pod with a node", "grows", "capacity"}},
	{"TestCapacityControllers", nil},
	{"TestAdmissionOfPods", nil},
	{"TestAdmissionOfWriters", nil},
	{"TestAdmissionOfNodes", nil},
	{"TestAdmissionOfCapacity", nil},
	{"TestAdmissionOfScheduler", nil},
	{"TestAdmissionOfVolumes", nil},
	{"TestAdmissionByToken", nil},
	{"TestWarningOfSchedulerName", nil},
	{"TestSamples", nil},
	{"TestAgentLife", nil},
	{"TestAgentNoRoom", nil},
	{"TestAgentClaimLife", nil},
}

// names are those of the tests in the output of go test.
func names(tests []coreTest) []string {
	var all []string
	for _, t := range tests {
		all = append(all, t.name)
		for _, s := range t.subtests {
			all = append(all, t.name+"/"+strings.ReplaceAll(s, " ", "_"))
		}
	}
	return all
}

// pattern is what go test -run selects the tests by.
func pattern(tests []coreTest) string {
	var all []string
	for _, t := range tests {
		p := "^" + t.name + "$"
		if len(t.subtests) > 0 {
			quoted := make([]string, len(t.subtests))
			for i, s := range t.subtests {
				quoted[i] = regexp.QuoteMeta(strings.ReplaceAll(s, " ", "_"))
			}
			p += "/^(" + strings.Join(quoted, "|") + ")$"
		}
		all = append(all, p)
	}
	return strings.Join(all, "|")
}

// only keeps the tests whose names match.
func only(tests []coreTest, match *regexp.Regexp) []coreTest {
	return slices.DeleteFunc(slices.Clone(tests), func(t coreTest) bool { return !match.MatchString(t.name) })
}
