package rules

// alertCase is one alert: series with which it fires, and series with which it does not, at a time after the start.
// Each series is written as in promtool's tests. Blanks separate it from its values, one a minute.
type alertCase struct {
	name string
	at   string
	// fires and quiet have one series in a line.
	fires, quiet string
}

// What the scrape configuration adds to the series of the agent of a node.
const agent = `job="berth-nodeagent",instance="10.0.0.1:9810",node="n1"`

const volume = `disk="d",volume="v",kind="ephemeral",namespace="db",owner="pg-0",` + agent

var cases = []alertCase{
	{"BerthAgentDown", "6m", `up{` + agent + `} 0x10`, `up{` + agent + `} 0x3 1 0x6`},
	{"BerthAgentNotReady", "11m", `berth_node_agent_ready{` + agent + `} 0x20`, `berth_node_agent_ready{` + agent + `} 0x5 1 0x20`},
	{"BerthNodeNotRegistered", "6m", `berth_node_registered{` + agent + `} 0x10`, `berth_node_registered{` + agent + `} 1x10`},
	{"BerthNodeNotPublished", "6m", `berth_node_unpublished_seconds{` + agent + `} 360x10`, `berth_node_unpublished_seconds{` + agent + `} 299x10`},
	{
		"BerthVersionSkew", "61m",
		`berth_build_info{component="nodeagent",version="v1",goversion="g",` + agent + `} 1x70
berth_build_info{component="scheduler",version="v2",goversion="g"} 1x70`,
		`berth_build_info{component="nodeagent",version="v1",goversion="g",` + agent + `} 1x70
berth_build_info{component="scheduler",version="v1",goversion="g"} 1x70`,
	},
	{"BerthDiskOutOfService", "3m", `berth_node_disk_out_of_service{disk="d",device="sda",class="ssd",` + agent + `} 1x10`, `berth_node_disk_out_of_service{disk="d",device="sda",class="ssd",` + agent + `} 1 0x10`},
	{"BerthDiskFlapping", "60m", `berth_node_disk_failures_total{disk="d",` + agent + `} 1x10 2x10 4x10 7x40`, `berth_node_disk_failures_total{disk="d",` + agent + `} 1x30 3x40`},
	{"BerthDisksShared", "1m", `berth_scheduler_shared_disks{job="berth-scheduler"} 1x5`, `berth_scheduler_shared_disks{job="berth-scheduler"} 0x5`},
	{"BerthDevicesRefused", "1441m", `berth_node_devices_refused{` + agent + `} 2x1500`, `berth_node_devices_refused{` + agent + `} 2x1000 0x500`},
	{"BerthDevicesWait", "1441m", `berth_node_candidate_devices{` + agent + `} 1x1500`, `berth_node_candidate_devices{` + agent + `} 1x1000 0x500`},
	{
		"BerthVolumeNearlyFull", "20m",
		`berth_node_volume_used_bytes{` + volume + `} 95x30
berth_node_volume_available_bytes{` + volume + `} 5x30`,
		`berth_node_volume_used_bytes{` + volume + `} 95x3 90x30
berth_node_volume_available_bytes{` + volume + `} 5x3 10x30`,
	},
	{
		"BerthVolumeInodesNearlyFull", "20m",
		`berth_node_volume_inodes{` + volume + `} 100x30
berth_node_volume_inodes_used{` + volume + `} 91x30`,
		`berth_node_volume_inodes{` + volume + `} 100x30
berth_node_volume_inodes_used{` + volume + `} 90x30`,
	},
	{
		"BerthVolumesUnmeasured", "11m", `berth_node_volumes_unmeasured{reason="hangs",` + agent + `} 3x20`,
		`berth_node_volumes_unmeasured{reason="limit",` + agent + `} 3x20
berth_node_volumes_unmeasured{reason="hangs",` + agent + `} 0x20`,
	},
	{
		"BerthOrphans", "61m", `berth_node_orphaned_volumes{kind="persistent",` + agent + `} 1x70`,
		`berth_node_orphaned_volumes{kind="ephemeral",` + agent + `} 1x70`,
	},
	{"BerthReclaimStopped", "6m", `berth_node_reclaim_stopped{` + agent + `} 1x10`, `berth_node_reclaim_stopped{` + agent + `} 1x2 0x8`},
	{"BerthReclaimBlocked", "16m", `berth_node_reclaim_blocked{holder="Open",` + agent + `} 1x20`, `berth_node_reclaim_blocked{holder="Open",` + agent + `} 1x10 0x10`},
	{
		"BerthWipeFails", "30m", `berth_node_wipes_total{class="ssd",policy="Zero",method="overwrite",result="failed",` + agent + `} 1x10 2x30`,
		`berth_node_wipes_total{class="ssd",policy="Zero",method="overwrite",result="done",` + agent + `} 1x10 2x30`,
	},
	{"BerthMoveFails", "30m", `berth_node_moves_total{class="ssd",result="failed",` + agent + `} 1x10 2x30`, `berth_node_moves_total{class="ssd",result="in_use",` + agent + `} 1x10 2x30`},
	{
		"BerthClassNearlyFull", "31m",
		`berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 9x40
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 100x40`,
		`berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 11x40
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 100x40`,
	},
	{
		// A hundredth of a percent a minute: full after seven days.
		"BerthClassFullIn7Days", "1500m",
		`berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 10000-1x2000
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 10000x2000`,
		`berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 100000-1x2000
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 100000x2000`,
	},
	{
		"BerthClassFragmented", "361m",
		`berth_scheduler_fragmentation_ratio{class="ssd",job="berth-scheduler"} 0.6x400
berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 50x400
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 100x400`,
		// In a full class the rest is in pieces, of course.
		`berth_scheduler_fragmentation_ratio{class="ssd",job="berth-scheduler"} 0.6x400
berth_scheduler_free_bytes{class="ssd",job="berth-scheduler"} 15x400
berth_scheduler_usable_bytes{class="ssd",job="berth-scheduler"} 100x400`,
	},
	{
		"BerthSchedulerDown", "6m", `up{job="berth-scheduler",instance="a"} 0x10`,
		`up{job="berth-scheduler",instance="a"} 0x10
up{job="berth-scheduler",instance="b"} 1x10`,
	},
	{
		"BerthPodsWaitForSpace", "1m", `berth_scheduler_oldest_waiting_pod_age_seconds{class="ssd",job="berth-scheduler"} 901x5`,
		`berth_scheduler_oldest_waiting_pod_age_seconds{class="ssd",job="berth-scheduler"} 900x5`,
	},
	{"BerthNodeLags", "1m", `berth_scheduler_node_lag_seconds{node="n1",job="berth-scheduler"} 301x5`, `berth_scheduler_node_lag_seconds{node="n1",job="berth-scheduler"} 299x5`},
	{
		"BerthNodeContradictory", "6m", `berth_scheduler_nodes{state="contradictory",job="berth-scheduler"} 1x10`,
		`berth_scheduler_nodes{state="contradictory",job="berth-scheduler"} 0x10
berth_scheduler_nodes{state="published",job="berth-scheduler"} 5x10`,
	},
	{"BerthPlacesRefused", "30m", `berth_scheduler_replaced_volumes_total{job="berth-scheduler"} 0x10 1x30`, `berth_scheduler_replaced_volumes_total{job="berth-scheduler"} 7x40`},
}
