// Package rules tests the alerts and recording rules of charts/berth/files/rules.yaml with promtool, the program that
// comes with Prometheus. Each alert fires in one case and does not in another. The series of the cases are those that
// docs/reference/metrics.md has, with its labels. Another test compares that page with what the programs serve. The
// queries of the Grafana board are compared with the page, too.
package rules
