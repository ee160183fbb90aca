package app

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skiff/internal/cli"
	"skiff/internal/host"
)

// elsewhere is a system in a directory, with a program to install there.
func elsewhere(t *testing.T) (s services, self string, said *[]string) {
	t.Helper()
	said = &[]string{}
	self = filepath.Join(t.TempDir(), "skiff")
	if err := os.WriteFile(self, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	return services{
		root: t.TempDir(), say: func(s string) { *said = append(*said, s) },
		booted: func() bool { return true },
		ctl:    func(_ context.Context, args ...string) error { t.Errorf("systemctl %v", args); return nil },
	}, self, said
}

// tree lists the files below dir with the links' targets.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		if to, err := os.Readlink(p); err == nil {
			name += " -> " + to
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func equalLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestInstall(t *testing.T) {
	s, self, said := elsewhere(t)
	o := cli.Install{
		Settings: cli.Settings{NodeIP: "192.0.2.1", MaxPods: 50, ExtraSANs: []string{"k8s.example.com"}},
		Program:  "/usr/local/bin/skiff", Enable: true, Start: true,
	}
	if err := s.install(t.Context(), self, o); err != nil {
		t.Fatal(err)
	}
	files := []string{
		"etc/skiff/default.yaml",
		"etc/systemd/system/multi-user.target.wants/skiff.service -> /etc/systemd/system/skiff.service",
		"etc/systemd/system/skiff.service",
		"usr/local/bin/skiff",
	}
	equalLines(t, "files", tree(t, s.root), files...)
	unit, err := os.ReadFile(filepath.Join(s.root, "etc/systemd/system/skiff.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ExecStart=/usr/local/bin/skiff --name default up --foreground --config /etc/skiff/default.yaml\n",
		"Type=notify\n", "KillMode=process\n", "Delegate=yes\n", "LimitNOFILE=1048576\n", "Environment=SKIFF_UNIT=skiff.service\n",
		"X-Skiff-Copied=/usr/local/bin/skiff\n", "WantedBy=multi-user.target\n",
	} {
		if !strings.Contains(string(unit), "\n"+want) {
			t.Errorf("the unit lacks %q:\n%s", want, unit)
		}
	}
	if last := (*said)[len(*said)-1]; !strings.HasPrefix(last, "nothing was started") {
		t.Errorf("said %q", *said)
	}

	// The next install keeps what it does not say, and the program is the new one.
	if err := os.WriteFile(self, []byte("program 2"), 0o755); err != nil {
		t.Fatal(err)
	}
	o.Settings = cli.Settings{MaxPods: 70}
	if err := s.install(t.Context(), self, o); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(filepath.Join(s.root, "etc/skiff/default.yaml"))
	if err != nil || c.MaxPods != 70 || c.NodeIP != "192.0.2.1" || len(c.ExtraSANs) != 1 || c.Name != "default" || c.APIPort != 0 {
		t.Errorf("config = %+v, %v", c, err)
	}
	if b, _ := os.ReadFile(filepath.Join(s.root, "usr/local/bin/skiff")); string(b) != "program 2" {
		t.Errorf("program = %q", b)
	}
	i, err := host.New("", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.uninstall(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	equalLines(t, "left", tree(t, s.root))
	if err := s.uninstall(t.Context(), i); err == nil || !strings.Contains(err.Error(), `cluster "default" is no service`) {
		t.Errorf("again: %v", err)
	}
}

// Two services share the program: it goes with the last of them.
func TestInstallTwo(t *testing.T) {
	s, self, _ := elsewhere(t)
	for _, name := range []string{"one", "two"} {
		o := cli.Install{Settings: cli.Settings{Name: name, NodeIP: "192.0.2.1"}, Program: "/opt/skiff dir/skiff"}
		if err := s.install(t.Context(), self, o); err != nil {
			t.Fatal(err)
		}
	}
	unit, _ := os.ReadFile(filepath.Join(s.root, "etc/systemd/system/skiff-one.service"))
	if want := `ExecStart="/opt/skiff dir/skiff" --name one up --foreground --config /etc/skiff/one.yaml`; !strings.Contains(string(unit), want) {
		t.Errorf("no %s in\n%s", want, unit)
	}
	remove := func(name string) {
		t.Helper()
		i, err := host.New(name, "")
		if err == nil {
			err = s.uninstall(t.Context(), i)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove("one")
	equalLines(t, "with one left", tree(t, s.root), "etc/skiff/two.yaml", "etc/systemd/system/skiff-two.service", "opt/skiff dir/skiff")
	remove("two")
	equalLines(t, "with none left", tree(t, s.root))
}

// Under systemd the service is enabled and started, and a later install restarts it.
// A program that was there before stays when the service goes.
func TestInstallHere(t *testing.T) {
	s, self, _ := elsewhere(t)
	var ctl []string
	s.here, s.ctl = true, func(_ context.Context, args ...string) error {
		ctl = append(ctl, strings.Join(args, " "))
		return nil
	}
	name := "unit-test"
	o := cli.Install{Settings: cli.Settings{Name: name, NodeIP: "192.0.2.1"}, Program: "/usr/bin/skiff", Enable: true, Start: true}
	if err := copyProgram(self, filepath.Join(s.root, o.Program)); err != nil {
		t.Fatal(err)
	}
	if err := s.install(t.Context(), self, o); err != nil {
		t.Fatal(err)
	}
	equalLines(t, "systemctl", ctl, "daemon-reload", "enable skiff-"+name+".service", "restart skiff-"+name+".service")
	equalLines(t, "files", tree(t, s.root), "etc/skiff/"+name+".yaml", "etc/systemd/system/skiff-"+name+".service", "usr/bin/skiff")
	if started, err := s.start(t.Context(), host.Instance{Name: name}); !started || err != nil || ctl[len(ctl)-1] != "start skiff-"+name+".service" {
		t.Errorf("start: %v, %v, %q", started, err, ctl)
	}
	if started, err := s.start(t.Context(), host.Instance{Name: "another"}); started || err != nil {
		t.Errorf("start of none: %v, %v", started, err)
	}
	ctl = nil
	i, err := host.New(name, "")
	if err == nil {
		err = s.uninstall(t.Context(), i)
	}
	if err != nil {
		t.Fatal(err)
	}
	equalLines(t, "systemctl", ctl, "disable --now skiff-"+name+".service", "daemon-reload")
	equalLines(t, "left", tree(t, s.root), "usr/bin/skiff")
}

func TestInstallNode(t *testing.T) {
	s, self, _ := elsewhere(t)
	o := cli.Install{Role: "node", Kubeconfig: "/etc/skiff/node.kubeconfig", Settings: cli.Settings{Name: "edge"}, Program: "/usr/bin/skiff"}
	if err := s.install(t.Context(), self, o); err != nil {
		t.Fatal(err)
	}
	unit, _ := os.ReadFile(filepath.Join(s.root, "etc/systemd/system/skiff-edge.service"))
	if want := "ExecStart=/usr/bin/skiff --name edge node --kubeconfig /etc/skiff/node.kubeconfig --config /etc/skiff/edge.yaml\n"; !strings.Contains(string(unit), want) {
		t.Errorf("no %s in\n%s", want, unit)
	}
}

func TestInstallWrong(t *testing.T) {
	s, self, _ := elsewhere(t)
	for want, o := range map[string]cli.Install{
		`podCIDR: "10.0.0.1/16": must be the first address of its range (10.0.0.0/16)`: {Settings: cli.Settings{NodeIP: "192.0.2.1", PodCIDR: "10.0.0.1/16"}},
		`"agent": a service is of a whole cluster, of its server, or of a node`:        {Role: "agent", Settings: cli.Settings{NodeIP: "192.0.2.1"}},
	} {
		o.Program = "/usr/bin/skiff"
		if err := s.install(t.Context(), self, o); err == nil || err.Error() != want {
			t.Errorf("%+v: %v, want %s", o, err, want)
		}
	}
	equalLines(t, "files", tree(t, s.root))
}

func TestQuoteUnit(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/skiff": "/usr/bin/skiff", "": `""`, "a b": `"a b"`, "100%": "100%%", "$HOME": "$$HOME", `say "x"\`: `"say \"x\"\\"`,
	} {
		if got := quoteUnit(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestFileLimit(t *testing.T) {
	for in, want := range map[string]uint64{"1073741816\n": 1 << 20, "65536\n": 65536, "": 1 << 20} {
		if got := fileLimit([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}
