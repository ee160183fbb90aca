package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"skiff/internal/admin"
	"skiff/internal/host"
)

// Identity tells one skiff program from another.
type Identity struct {
	// Release is its version, or "dev"; Build a hash of what it was built from.
	Release, Build string
}

func (i Identity) String() string {
	if i.Release == "" {
		return "skiff of an early release"
	}
	return fmt.Sprintf("skiff %s (build %s)", i.Release, i.Build)
}

// Upgrader is what one skiff has to know to take over from another.
type Upgrader interface {
	Identity() Identity
	// Older tells whether release a came before release b.
	Older(a, b string) bool
	// CanRun finds what would make a start of this program fail, while another one
	// runs the cluster; it does nothing to that.
	CanRun(ctx context.Context, s Start) error
}

// upgrade are the flags of a takeover.
type upgrade struct{ newer, older bool }

// move is what up does about a skiff that runs.
type move int

const (
	leave  move = iota // it is this program, or is to be left alone
	take               // this one takes over
	refuse             // this one must not
)

// decide is what `skiff up` of program self does where st runs, and what it says.
func (u upgrade) decide(st admin.Status, self Identity, older func(a, b string) bool) (move, string) {
	runs := Identity{st.Release, st.Build}
	running := fmt.Sprintf("Cluster %q is running already (pid %d)", st.Name, st.PID)
	switch {
	case runs == self:
		return leave, running + ". Nothing was changed."
	case st.Unit != "":
		return leave, fmt.Sprintf("%s as the service %s, with %s; this is %s. Nothing was changed: `skiff install%s` of this skiff upgrades the service.",
			running, st.Unit, runs, self, flagOf(st.Name))
	case older(self.Release, runs.Release) && !u.older:
		return refuse, fmt.Sprintf("cluster %q runs with %s, which is newer than this %s. Nothing was changed; --downgrade takes over all the same", st.Name, runs, self)
	case !u.newer:
		return leave, fmt.Sprintf("%s, with %s; this is %s. Nothing was changed.", running, runs, self)
	}
	return take, fmt.Sprintf("Cluster %q runs with %s. This is %s: it takes over; pods go on.", st.Name, runs, self)
}

func flagOf(name string) string { return nameFlag(host.Instance{Name: name}) }

// takeOver ends the skiff that st tells of, after this program has seen that it can
// run, and starts this one with start, which tells whether it came to be Ready.
// Where it did not the one before is started again.
func (c *command) takeOver(ctx context.Context, a *admin.Client, i host.Instance, st admin.Status, start func() (came bool, err error)) error {
	if err := c.local.CanRun(ctx, Start{Role: AllInOne, Settings: c.set, ConfigFile: c.conf}); err != nil {
		return fmt.Errorf("this skiff cannot run here, so that the other one goes on: %w", err)
	}
	// Its file may have been replaced or removed; what it executes is still to be had.
	before, err := keepProgram(st.PID)
	if err != nil {
		return fmt.Errorf("the program of the running skiff: %w", err)
	}
	defer unix.Close(before)
	if err := a.End(ctx, false); err != nil && !errors.Is(err, admin.ErrNotRunning) {
		return fmt.Errorf("end the running skiff: %w", err)
	}
	came, err := start()
	if came || err == nil || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(c.err, "skiff: %v\nThe skiff from before is started again.\n", err)
	if _, back := c.spawn(ctx, fmt.Sprintf("/proc/self/fd/%d", before), i, []string{"--name", i.Name, "--data-dir", i.DataDir}); back != nil {
		return fmt.Errorf("neither this skiff nor the one from before can run: %w", errors.Join(err, back))
	}
	return fmt.Errorf("this skiff could not take over; the one from before runs again: %w", err)
}

// keepProgram opens the program that a process executes, above the descriptors that
// a child is given.
func keepProgram(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 64)
}
