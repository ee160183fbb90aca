package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"skiff/internal/host"
	"skiff/internal/network"
	"skiff/internal/runtime"
	"skiff/internal/runtime/keeper"
)

// reset undoes everything that an instance put on this host, by its journal. It
// needs no running skiff, and can be repeated: what it could not undo stays in
// the journal.
func reset(ctx context.Context, i host.Instance, say func(string)) error {
	if _, err := os.Stat(i.DataDir); errors.Is(err, os.ErrNotExist) {
		say("there is no data in " + i.DataDir)
	}
	if err := os.MkdirAll(i.DataDir, 0o700); err != nil {
		return err
	}
	if err := foreignDir(i); err != nil {
		return err
	}
	unlock, err := lockInstance(i)
	if err != nil {
		return err
	}
	defer unlock()
	j, err := host.OpenJournal(i.JournalPath())
	if err != nil {
		return err
	}
	switch lived, err := keeper.End(ctx, keeper.Dir(i)); {
	case err != nil:
		return fmt.Errorf("end the keeper of sockets: %w", err)
	case lived:
		say("ended the keeper of sockets")
	}
	// Plugins want to see the namespaces that they leave.
	if err := detachPlugins(ctx, i, j, say); err != nil {
		// They may have been removed from the host; the pods go all the same.
		say(fmt.Sprintf("what CNI plugins keep for pods is left to them (%v)", err))
	}
	if err := runtime.Reset(ctx, i); err != nil {
		return err
	}
	say("ended all pods")
	inherited, err := host.OpenJournal(i.Run(inheritedJournal))
	if err != nil {
		return err
	}
	heir := otherInstance(i)
	var errs []error
	for _, e := range append(inherited.Entries(), j.Entries()...) {
		if heir != "" && (e.Kind == host.KindSysctl || e.Kind == host.KindLink) {
			if err := bequeath(heir, e); err != nil {
				errs = append(errs, err)
				continue
			}
			say(fmt.Sprintf("left %s %s to cluster %q, which needs it", e.Kind, e.Name, filepath.Base(heir)))
			continue
		}
		switch e.Kind {
		case host.KindDir, host.KindCgroup, host.KindPodProcs:
			// Pods and their cgroups are gone with the runtime; directories go
			// last, the journal with the run directory.
		case host.KindMounts:
			if err := unmountBelow(e.Name); err != nil {
				errs = append(errs, err)
			}
		case host.KindFile:
			if err := os.Remove(e.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		default:
			handled, err := network.Undo("", e)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if !handled {
				errs = append(errs, fmt.Errorf("journal: this skiff does not know how to undo %s %q", e.Kind, e.Name))
				continue
			}
			say(fmt.Sprintf("undid %s %s", e.Kind, e.Name))
		}
	}
	for _, dir := range []string{i.RunDir, i.DataDir} {
		if err := unmountBelow(dir); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, dir := range []string{i.DataDir, i.RunDir} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		say("removed " + dir)
	}
	if err := machine().Remove(i); err != nil {
		return err
	}
	if _, err := os.Stat(host.UnitPath("/", i)); err == nil {
		say(i.Unit() + " stays and would start it anew; skiff uninstall" + nameArg(i) + " removes it")
	}
	// The parents are skiff's too, once the last instance is gone.
	for _, dir := range []string{filepath.Dir(i.RunDir), host.StateDir} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// detachPlugins has CNI plugins give back what they gave the pods.
func detachPlugins(ctx context.Context, i host.Instance, j *host.Journal, say func(string)) error {
	if _, err := os.Stat(i.Run("cni")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c, err := LoadConfig(configPath(i))
	if err != nil {
		say(fmt.Sprintf("looks for CNI plugins in the usual places (%v)", err))
	}
	return newCNI(c, i, j).Retain(ctx, nil)
}

// inheritedJournal lists, in an instance's run directory, what instances that were
// reset changed for all and this one is to undo. A boot forgets it with the
// changes themselves.
const inheritedJournal = "inherited"

// otherInstance is the run directory of another instance that was started since
// the machine was; empty where there is none.
func otherInstance(i host.Instance) string {
	entries, err := os.ReadDir(filepath.Dir(i.RunDir))
	if err != nil {
		return ""
	}
	for _, e := range entries {
		dir := filepath.Join(filepath.Dir(i.RunDir), e.Name())
		// One without a journal never put anything on the host.
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(i.JournalPath()))); err == nil && e.Name() != i.Name {
			return dir
		}
	}
	return ""
}

// bequeath leaves a change to the instance whose run directory heir is: its
// traffic would stop with the change undone.
func bequeath(heir string, e host.Entry) error {
	j, err := host.OpenJournal(filepath.Join(heir, inheritedJournal))
	if err != nil {
		return err
	}
	return j.Record(e)
}

// unmountBelow unmounts everything at and below dir, deepest first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		p := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
