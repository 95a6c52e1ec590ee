// Command board writes the Grafana board of Berth, charts/berth/files/board.json. rows has all that is on it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

func main() {
	out := flag.String("out", "../../charts/berth/files/board.json", "file to write")
	flag.Parse()
	if err := write(*out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(path string) error {
	b, err := board().Build()
	if err != nil {
		return fmt.Errorf("board: %w", err)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return fmt.Errorf("board: %w", err)
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// kind is the way in which a panel shows its queries.
type kind int

const (
	number kind = iota // the present value
	series             // over time
	rows               // a table of the present values
)

// panel is a panel of the board. A query has the text of its legend, which may name labels.
type panel struct {
	kind    kind
	title   string
	unit    string
	span    uint32
	queries []query
}

type query struct{ expr, legend string }

// noUnit is the unit of counts.
const noUnit = units.Short

// source is the Prometheus that the reader of the board chooses.
var source = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("$datasource")}

func board() *dashboard.DashboardBuilder {
	b := dashboard.NewDashboardBuilder("Berth").Uid("berth").Tags([]string{"berth"}).
		Description("Local disks of Kubernetes nodes. Written by make generate from build/board: change it there.").
		Refresh("1m").Time("now-6h", "now").Timezone(common.TimeZoneBrowser).Readonly().
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	for _, v := range []struct{ name, query string }{
		{"class", "label_values(berth_scheduler_usable_bytes, class)"},
		{"node", "label_values(berth_node_disk_info, node)"},
		{"namespace", "label_values(berth_node_volume_capacity_bytes, namespace)"},
	} {
		b.WithVariable(dashboard.NewQueryVariableBuilder(v.name).Query(dashboard.StringOrMap{String: &v.query}).Datasource(source).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Multi(true).IncludeAll(true).AllValue(".*"))
	}
	for _, group := range groups {
		b.WithRow(dashboard.NewRowBuilder(group.title))
		for _, p := range group.panels {
			b.WithPanel(p.builder())
		}
	}
	return b
}

// builder makes the panel with the SDK.
func (p panel) builder() cog.Builder[dashboard.Panel] {
	const height = 7
	switch p.kind {
	case number:
		b := stat.NewPanelBuilder().Title(p.title).Unit(p.unit).Span(p.span).Height(height).Datasource(source)
		for i, q := range p.queries {
			b.WithTarget(q.builder(i).Instant())
		}
		return b
	case rows:
		b := table.NewPanelBuilder().Title(p.title).Unit(p.unit).Span(p.span).Height(height).Datasource(source)
		for i, q := range p.queries {
			b.WithTarget(q.builder(i).Instant().Format(prometheus.PromQueryFormatTable))
		}
		return b
	case series:
	}
	b := timeseries.NewPanelBuilder().Title(p.title).Unit(p.unit).Span(p.span).Height(height).Datasource(source).Min(0)
	for i, q := range p.queries {
		b.WithTarget(q.builder(i))
	}
	return b
}

func (q query) builder(i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().Expr(q.expr).LegendFormat(q.legend).RefId(string(rune('A' + i)))
}
