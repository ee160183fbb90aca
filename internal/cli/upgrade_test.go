package cli

import (
	"strings"
	"testing"

	"skiff/internal/admin"
)

func TestDecideUpgrade(t *testing.T) {
	older := func(a, b string) bool { return a != b && (a == "" || a < b && b != "") }
	self := Identity{"v0.5.0", "aaa"}
	for _, tt := range []struct {
		name           string
		release, build string
		unit           string
		u              upgrade
		want           move
		says           string
	}{
		{"the same", "v0.5.0", "aaa", "", upgrade{newer: true}, leave, `Cluster "c" is running already (pid 7). Nothing was changed.`},
		{"an older release", "v0.4.0", "bbb", "", upgrade{newer: true}, take, `Cluster "c" runs with skiff v0.4.0 (build bbb). This is skiff v0.5.0 (build aaa): it takes over; pods go on.`},
		{"before releases had names", "", "", "", upgrade{newer: true}, take, `runs with skiff of an early release. This is`},
		{"another build of this release", "v0.5.0", "bbb", "", upgrade{newer: true}, take, "takes over"},
		{"told to leave it", "v0.4.0", "bbb", "", upgrade{}, leave, "with skiff v0.4.0 (build bbb); this is skiff v0.5.0 (build aaa). Nothing was changed."},
		{"a newer release", "v0.6.0", "ccc", "", upgrade{newer: true}, refuse, `runs with skiff v0.6.0 (build ccc), which is newer than this skiff v0.5.0 (build aaa). Nothing was changed; --downgrade takes over all the same`},
		{"a newer release, wanted", "v0.6.0", "ccc", "", upgrade{newer: true, older: true}, take, "takes over"},
		{"a service", "v0.4.0", "bbb", "skiff-c.service", upgrade{newer: true}, leave, "`skiff install --name c` of this skiff upgrades the service."},
		{"this, as a service", "v0.5.0", "aaa", "skiff-c.service", upgrade{newer: true}, leave, "Nothing was changed."},
	} {
		got, says := tt.u.decide(admin.Status{Name: "c", PID: 7, Release: tt.release, Build: tt.build, Unit: tt.unit}, self, older)
		if got != tt.want || !strings.Contains(says, tt.says) {
			t.Errorf("%s: %d, %q; want %d, %q", tt.name, got, says, tt.want, tt.says)
		}
	}
}
