package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"skiff/internal/admin"
)

func TestStatusText(t *testing.T) {
	w := whole{
		Running: true,
		Status: admin.Status{
			Name: "c", PID: 7, Version: "v1.37.2+skiff", Release: "v0.5.0", Build: "abc", Ready: true, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Server: "https://127.0.0.1:6443", NodeName: "n", NodeIP: "192.0.2.1", DataDir: "/var/lib/skiff/c", Unit: "skiff-c.service",
		},
		Health: admin.Health{
			Process: admin.Process{Memory: 61 << 20, Private: 40 << 20, Heap: 1536, CPU: 0.0123, CPUSeconds: 12.345, Goroutines: 200},
			Parts: []admin.Part{
				{Name: "etcd", Healthy: true, State: "ok", Goroutines: 20, Figures: []admin.Figure{{Name: "revision", Value: 1234567}, {Name: "database", Value: 3 << 30, Unit: "bytes"}}},
				{Name: "DNS", State: "lookup kubernetes: timeout", Figures: []admin.Figure{{Name: "first ends in", Value: 12, Unit: "days"}}},
			},
		},
	}
	const want = `Cluster  c, not well since 2026-01-02 03:04:05 (pid 7, v1.37.2+skiff)
Program  skiff v0.5.0 (build abc), as the service skiff-c.service
Server   https://127.0.0.1:6443
Node     n, 192.0.2.1
Data     /var/lib/skiff/c
Memory   61.0MiB resident, 40.0MiB private, 1.5KiB of it live objects
CPU      1.2% of one lately, 12.35s since the start; 200 goroutines
  etcd  ok                          revision 1234567, database 3.0GiB, goroutines 20
  DNS   lookup kubernetes: timeout  first ends in 12 days, goroutines 0
`
	if got := w.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	w.Healthy = true
	if got := w.text(); !strings.HasPrefix(got, "Cluster  c, Ready since") {
		t.Errorf("well: %s", got)
	}
	w.Ready = false
	if got := w.text(); !strings.HasPrefix(got, "Cluster  c, starting since") {
		t.Errorf("starting: %s", got)
	}
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"name":"c"`, `"running":true`, `"healthy":true`, `"memoryBytes":63963136`, `"parts":[{"name":"etcd"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}
