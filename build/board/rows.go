package main

import "github.com/grafana/grafana-foundation-sdk/go/units"

// groups are the rows of the board, from the top.
var groups = []struct {
	title  string
	panels []panel
}{
	{"Now", []panel{
		{number, "Part of each class in use", units.PercentUnit, 6, []query{{`berth:class_fill:ratio{class=~"$class"}`, "{{class}}"}}},
		{number, "Free", units.BytesIEC, 6, []query{{`max by (class) (berth_scheduler_free_bytes{class=~"$class"})`, "{{class}}"}}},
		{number, "Largest free extent", units.BytesIEC, 6, []query{{`max by (class) (berth_scheduler_largest_free_extent_bytes{class=~"$class"})`, "{{class}}"}}},
		{number, "Waiting pods", noUnit, 6, []query{{`max by (class) (berth_scheduler_waiting_pods{class=~"$class"})`, "{{class}}"}}},
		{number, "Disks out of service", noUnit, 6, []query{{`sum(berth_node_disk_out_of_service{class=~"$class",node=~"$node"})`, ""}}},
		{number, "Volumes without an owner", noUnit, 6, []query{{`sum by (kind) (berth_node_orphaned_volumes{node=~"$node"})`, "{{kind}}"}}},
		{number, "Volumes that cannot be wiped", noUnit, 6, []query{{`sum(berth_node_reclaim_blocked{node=~"$node"}) or vector(0)`, ""}}},
		{number, "Devices that are not used", noUnit, 6, []query{
			{`sum(berth_node_devices_refused{node=~"$node"})`, "refused"}, {`sum(berth_node_candidate_devices{node=~"$node"})`, "waiting"},
		}},
	}},
	{"Space over time", []panel{
		{series, "In use", units.BytesIEC, 12, []query{
			{`max by (class) (berth_scheduler_usable_bytes{class=~"$class"}) - max by (class) (berth_scheduler_free_bytes{class=~"$class"})`, "{{class}}"},
		}},
		{series, "Free", units.BytesIEC, 12, []query{{`max by (class) (berth_scheduler_free_bytes{class=~"$class"})`, "{{class}}"}}},
		{series, "Largest free extent", units.BytesIEC, 8, []query{{`max by (class) (berth_scheduler_largest_free_extent_bytes{class=~"$class"})`, "{{class}}"}}},
		{series, "Part of the free space outside of the largest extents", units.PercentUnit, 8, []query{{`max by (class) (berth_scheduler_fragmentation_ratio{class=~"$class"})`, "{{class}}"}}},
		{series, "Pieces of free space", noUnit, 8, []query{{`max by (class) (berth_scheduler_free_extents{class=~"$class"})`, "{{class}}"}}},
	}},
	{"Scheduling", []panel{
		{series, "Decisions a second", noUnit, 8, []query{{`sum by (result) (rate(berth_scheduler_decisions_total[$__rate_interval]))`, "{{result}}"}}},
		{series, "Reasons why pods wait", noUnit, 8, []query{{`sum by (class, reason) (rate(berth_scheduler_unschedulable_reasons_total[$__rate_interval]))`, "{{class}} {{reason}}"}}},
		{series, "Age of the oldest waiting pod", units.Seconds, 8, []query{{`max by (class) (berth_scheduler_oldest_waiting_pod_age_seconds{class=~"$class"})`, "{{class}}"}}},
		{series, "Time to plan a pod", units.Seconds, 8, []query{
			{`histogram_quantile(0.5, sum by (le, step) (rate(berth_scheduler_plan_duration_seconds_bucket[$__rate_interval])))`, "{{step}}, half"},
			{`histogram_quantile(0.99, sum by (le, step) (rate(berth_scheduler_plan_duration_seconds_bucket[$__rate_interval])))`, "{{step}}, 99 %"},
		}},
		{series, "Time until nodes publish a volume", units.Seconds, 8, []query{
			{`histogram_quantile(0.5, sum by (le) (rate(berth_scheduler_publish_delay_seconds_bucket[$__rate_interval])))`, "half"},
			{`histogram_quantile(0.99, sum by (le) (rate(berth_scheduler_publish_delay_seconds_bucket[$__rate_interval])))`, "99 %"},
		}},
		{series, "Failed bindings, refused places", noUnit, 8, []query{
			{`sum by (outcome) (rate(berth_scheduler_bind_failures_total[$__rate_interval]))`, "{{outcome}}"},
			{`sum(rate(berth_scheduler_replaced_volumes_total[$__rate_interval]))`, "placed elsewhere"},
		}},
	}},
	{"Disks", []panel{
		{rows, "Part of each disk in use", units.PercentUnit, 12, []query{{`berth:disk_fill:ratio{class=~"$class",node=~"$node"}`, ""}}},
		{rows, "States", noUnit, 12, []query{{`berth_node_disk_state{node=~"$node"} == 1`, ""}}},
		{series, "Largest free extent", units.BytesIEC, 12, []query{
			{`berth_node_disk_largest_free_extent_bytes{node=~"$node"} * on (node, disk) group_left (device) berth_node_disk_info{class=~"$class"}`, "{{node}}/{{device}}"},
		}},
		{series, "Failures", noUnit, 12, []query{{`increase(berth_node_disk_failures_total{node=~"$node"}[1h])`, "{{node}} {{disk}}"}}},
	}},
	{"Volumes", []panel{
		{rows, "Fullest", units.PercentUnit, 12, []query{{`topk(20, berth:volume_fill:ratio{node=~"$node",namespace=~"$namespace"})`, ""}}},
		{rows, "Largest", units.BytesIEC, 12, []query{{`topk(20, berth_node_volume_capacity_bytes{node=~"$node",namespace=~"$namespace"})`, ""}}},
		{series, "Time with requests in progress", units.PercentUnit, 8, []query{
			{`topk(20, rate(berth_node_volume_io_time_seconds_total{node=~"$node",namespace=~"$namespace"}[$__rate_interval]))`, "{{namespace}}/{{owner}}"},
		}},
		{series, "Read", units.BytesPerSecondIEC, 8, []query{
			{`topk(20, rate(berth_node_volume_read_bytes_total{node=~"$node",namespace=~"$namespace"}[$__rate_interval]))`, "{{namespace}}/{{owner}}"},
		}},
		{series, "Written", units.BytesPerSecondIEC, 8, []query{
			{`topk(20, rate(berth_node_volume_written_bytes_total{node=~"$node",namespace=~"$namespace"}[$__rate_interval]))`, "{{namespace}}/{{owner}}"},
		}},
	}},
	{"Wipes and moves", []panel{
		{series, "To be wiped", units.BytesIEC, 8, []query{{`sum by (node) (berth_node_disk_volume_bytes{phase="Wiping",node=~"$node"})`, "{{node}}"}}},
		{series, "Wiped", units.BytesPerSecondIEC, 8, []query{{`sum by (class) (rate(berth_node_wiped_bytes_total{class=~"$class",node=~"$node"}[$__rate_interval]))`, "{{class}}"}}},
		{series, "Moved", units.BytesPerSecondIEC, 8, []query{{`sum by (class) (rate(berth_node_moved_bytes_total{class=~"$class",node=~"$node"}[$__rate_interval]))`, "{{class}}"}}},
		{series, "Duration of wipes, 99 %", units.Seconds, 12, []query{
			{`histogram_quantile(0.99, sum by (le, policy) (rate(berth_node_wipe_duration_seconds_bucket{class=~"$class",node=~"$node"}[$__rate_interval])))`, "{{policy}}"},
		}},
		{series, "Failures in an hour", noUnit, 12, []query{
			{`sum by (class) (increase(berth_node_wipes_total{result="failed",class=~"$class",node=~"$node"}[1h]))`, "wipes, {{class}}"},
			{`sum by (class) (increase(berth_node_moves_total{result="failed",class=~"$class",node=~"$node"}[1h]))`, "moves, {{class}}"},
		}},
	}},
	{"Agents and scheduler", []panel{
		{rows, "Versions", noUnit, 8, []query{{`count by (component, version) (berth_build_info)`, ""}}},
		{series, "Agents that do not serve", noUnit, 8, []query{
			{`count(up{job="berth-nodeagent"} == 0) or vector(0)`, "no answer"}, {`count(berth_node_agent_ready == 0) or vector(0)`, "not ready"},
			{`count(berth_node_registered == 0) or vector(0)`, "not registered"},
		}},
		{series, "Memory", units.BytesIEC, 8, []query{{`max by (job) (process_resident_memory_bytes{job=~"berth-.*"})`, "{{job}}"}}},
	}},
}
