package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"skiff/internal/admin"
	"skiff/internal/cli"
	"skiff/internal/host"
	"skiff/internal/runtime/programs"
)

// services is what install and uninstall ask of the machine.
type services struct {
	// root is the root directory of the system that is written to, here that it is
	// this one: nothing is started or stopped in another.
	root string
	here bool
	// booted tells whether systemd runs this machine (sd_booted(3)).
	booted func() bool
	// ctl is systemctl.
	ctl func(ctx context.Context, args ...string) error
	say func(string)
}

func theseServices(root string, say func(string)) services {
	if root == "" {
		root = "/"
	}
	return services{root: root, here: root == "/", say: say,
		booted: func() bool { _, err := os.Lstat("/run/systemd/system"); return err == nil },
		ctl: func(ctx context.Context, args ...string) error {
			out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
			}
			return nil
		},
	}
}

func (s services) live() bool { return s.here && s.booted() }

// wants is the link that starts a unit at boot.
func (s services) wants(i host.Instance) string {
	return filepath.Join(s.root, "etc/systemd/system/multi-user.target.wants", i.Unit())
}

// Install implements cli.Installer.
func (Local) Install(ctx context.Context, o cli.Install, say func(string)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return theseServices(o.Root, say).install(ctx, self, o)
}

// Uninstall implements cli.Installer.
func (Local) Uninstall(ctx context.Context, i host.Instance, root string, say func(string)) error {
	return theseServices(root, say).uninstall(ctx, i)
}

// StartService implements cli.Installer.
func (Local) StartService(ctx context.Context, i host.Instance, say func(string)) (bool, error) {
	return theseServices("", say).start(ctx, i)
}

func (s services) start(ctx context.Context, i host.Instance) (bool, error) {
	if !s.live() {
		return false, nil
	}
	if _, err := os.Stat(host.UnitPath(s.root, i)); err != nil {
		return false, nil
	}
	if err := s.ctl(ctx, "start", i.Unit()); err != nil {
		return false, err
	}
	s.say("started the service " + i.Unit() + ", with the settings of " + host.ConfigPath(s.root, i))
	return true, nil
}

func (s services) install(ctx context.Context, self string, o cli.Install) error {
	i, config, err := s.config(o)
	if err != nil {
		return err
	}
	if s.here && os.Geteuid() != 0 {
		return &StartError{"a service is installed by root", "run it with sudo, or write its files elsewhere with --root"}
	}
	if o.Kubeconfig != "" {
		if o.Kubeconfig, err = filepath.Abs(o.Kubeconfig); err != nil {
			return err
		}
	}
	args, err := unitArgs(i, o.Role, host.ConfigPath("/", i), o.Kubeconfig)
	if err != nil {
		return err
	}
	u := unit{instance: i, program: o.Program, args: args, files: mostFiles}
	if s.here {
		if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
			u.files = fileLimit(b)
		}
	}
	if u.copied, err = s.program(self, o.Program); err != nil {
		return err
	}
	if err := s.write(host.ConfigPath(s.root, i), config, 0o600); err != nil {
		return err
	}
	if err := s.write(host.UnitPath(s.root, i), []byte(u.text()), 0o644); err != nil {
		return err
	}
	if o.Enable && !s.live() {
		if err := s.link(i); err != nil {
			return err
		}
	}
	if !s.live() {
		if s.here {
			s.say("systemd does not run this machine: nothing was started; where it runs, it starts " + i.Unit() + " at boot, and `skiff up" + nameArg(i) + "` starts the cluster without it")
		} else {
			s.say("nothing was started: the files are of a system in " + s.root)
		}
		return nil
	}
	if err := s.ctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if o.Enable {
		if err := s.ctl(ctx, "enable", i.Unit()); err != nil {
			return err
		}
		s.say("enabled " + i.Unit() + ": it starts at boot")
	}
	if !o.Start {
		return nil
	}
	// One that runs without systemd makes way; its pods and its sockets stay.
	a := admin.Dial(i.AdminSocket())
	st, err := a.Status(ctx)
	if err != nil && !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	if err == nil && st.Unit == "" {
		if err := a.End(ctx, false); err != nil {
			return err
		}
		s.say(fmt.Sprintf("ended the skiff that ran outside of systemd (pid %d); its pods go on", st.PID))
	}
	if err := s.ctl(ctx, "restart", i.Unit()); err != nil {
		return err
	}
	s.say("started " + i.Unit())
	return nil
}

// config is what the service is started with: what this command says, over the
// file that it names, or over what an earlier install wrote.
func (s services) config(o cli.Install) (host.Instance, []byte, error) {
	c := Config(o.Settings)
	i, err := c.Instance()
	if err != nil {
		return i, nil, err
	}
	from := o.ConfigFile
	if from == "" {
		from = host.ConfigPath(s.root, i)
	}
	f, err := LoadConfig(from)
	switch {
	case err == nil:
		if c = overlay(f, c); c.Name != i.Name {
			if i, err = c.Instance(); err != nil {
				return i, nil, err
			}
		}
	case o.ConfigFile != "" || !errors.Is(err, fs.ErrNotExist):
		return i, nil, err
	}
	if s.here {
		if _, err := c.find(machine()); err != nil {
			return i, nil, err
		}
	}
	if i, err = c.Instance(); err != nil {
		return i, nil, err
	}
	// The service starts in another directory than this command.
	for _, f := range []*string{&c.DataDir, &c.EtcdCA, &c.EtcdCert, &c.EtcdKey, &c.SchedulerConfig} {
		if *f == "" {
			continue
		}
		if *f, err = filepath.Abs(*f); err != nil {
			return i, nil, err
		}
	}
	if o.Role != "node" {
		// What would fail at the start is told now; what it completes is left open,
		// for the machine that it starts on.
		if _, err := c.Complete(); err != nil {
			return i, nil, err
		}
	}
	c.Name = i.Name
	b, err := yaml.Marshal(c)
	return i, b, err
}

// program makes to be this program, self, where it is not. copied says that
// install put it there, now or before.
func (s services) program(self, to string) (copied bool, err error) {
	at := filepath.Join(s.root, to)
	for _, text := range s.units() {
		copied = copied || copiedProgram(text) == to
	}
	if sameDir(self, at) {
		return copied, nil
	}
	if _, err := os.Stat(at); err != nil {
		copied = true
	}
	if err := copyProgram(self, at); err != nil {
		return false, fmt.Errorf("install the program: %w", err)
	}
	s.say("wrote " + at)
	return copied, nil
}

// copyProgram leaves at to either the whole of from or what was there: it may be
// running.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return programs.Place(to, in)
}

func (s services) write(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	s.say("wrote " + path)
	return nil
}

// link does what systemctl enable does, where no systemd runs.
func (s services) link(i host.Instance) error {
	at := s.wants(i)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	target := host.UnitPath("/", i)
	if to, err := os.Readlink(at); err == nil && to == target {
		return nil
	}
	if err := os.Symlink(target, at); err != nil {
		return err
	}
	s.say("wrote " + at + ": it starts at boot")
	return nil
}

// uninstall ends the service and removes what install wrote.
func (s services) uninstall(ctx context.Context, i host.Instance) error {
	path := host.UnitPath(s.root, i)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cluster %q is no service: there is no %s", i.Name, path)
	}
	if err != nil {
		return err
	}
	if s.here {
		// It ends its pods, as down does: when systemd alone stops it they go on.
		switch err := admin.Dial(i.AdminSocket()).End(ctx, true); {
		case err == nil:
			s.say("stopped the cluster and its pods")
		case !errors.Is(err, admin.ErrNotRunning):
			return err
		}
	}
	if s.live() {
		if err := s.ctl(ctx, "disable", "--now", i.Unit()); err != nil {
			return err
		}
		s.say("disabled " + i.Unit())
	}
	gone := []string{s.wants(i), path, host.ConfigPath(s.root, i)}
	if p := copiedProgram(string(text)); p != "" && !s.usedByOthers(p, i) {
		gone = append(gone, filepath.Join(s.root, p))
	}
	for _, p := range gone {
		switch err := os.Remove(p); {
		case err == nil:
			s.say("removed " + p)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	// With the last file goes the directory.
	_ = os.Remove(filepath.Dir(host.ConfigPath(s.root, i)))
	if s.live() {
		return s.ctl(ctx, "daemon-reload")
	}
	return nil
}

// units are the texts of all units of skiff by their names.
func (s services) units() map[string]string {
	paths, err := filepath.Glob(filepath.Join(s.root, "etc/systemd/system/skiff*.service"))
	if err != nil {
		return nil // not reached: the pattern is well formed but for the root's own characters
	}
	out := map[string]string{}
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil {
			out[filepath.Base(p)] = string(b)
		}
	}
	return out
}

// usedByOthers tells whether another instance's unit starts the program.
func (s services) usedByOthers(program string, i host.Instance) bool {
	for name, text := range s.units() {
		if name != i.Unit() && strings.Contains(text, "\nExecStart="+quoteUnit(program)+" ") {
			return true
		}
	}
	return false
}

func nameArg(i host.Instance) string {
	if i.Name == host.DefaultName {
		return ""
	}
	return " --name " + i.Name
}
