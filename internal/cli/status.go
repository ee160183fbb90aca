package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
)

// Exit codes of status; those of init scripts where they say the same (LSB 5.0,
// "Init Script Actions").
const (
	statusUnwell  exitCode = 1 // it runs, and is starting or a part of it is not well
	statusNotHere exitCode = 3 // it does not run
)

// whole is what status tells of a cluster.
type whole struct {
	admin.Status
	Running bool `json:"running"`
	admin.Health
}

func (c *command) status() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Tell whether the cluster runs, and how its parts are", Args: cobra.NoArgs,
		Long: `Tell whether the cluster runs, what it takes of this machine, and how each of its
parts is: each is asked, by the way in which it is used.

Exit codes: 0 all is well; 1 it is starting, or a part is not well; 3 it does not
run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("--output %q: must be json", output)
			}
			a, i, known, err := c.find()
			if err != nil {
				return err
			}
			w := whole{Status: admin.Status{Name: i.Name, DataDir: i.DataDir}}
			absent := c.local.Unknown(i)
			if known {
				absent = fmt.Sprintf("skiff %q is not running. Start it with: skiff up%s", i.Name, nameFlag(i))
				st, err := a.Status(cmd.Context())
				if err == nil {
					w.Status, w.Running = st, true
					w.Health, err = a.Health(cmd.Context())
				}
				// One that is killed while it is asked does not run.
				if errors.Is(err, admin.ErrNotRunning) {
					w.Running, err = false, nil
				}
				if err != nil {
					return err
				}
			}
			switch {
			case output == "json":
				e := json.NewEncoder(c.out)
				e.SetIndent("", "  ")
				err = e.Encode(w)
			case w.Running:
				_, err = fmt.Fprint(c.out, w.text())
			default:
				_, err = fmt.Fprintln(c.out, absent)
			}
			switch {
			case err != nil:
				return err
			case !w.Running:
				return statusNotHere
			case !w.Healthy:
				return statusUnwell
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, for programs")
	return cmd
}

// text is the status for people.
func (w whole) text() string {
	var b strings.Builder
	state := "Ready"
	switch {
	case !w.Ready:
		state = "starting"
	case !w.Healthy:
		state = "not well"
	}
	fmt.Fprintf(&b, "Cluster  %s, %s since %s (pid %d, %s)\n", w.Name, state, w.Started.Format(time.DateTime), w.PID, w.Version)
	fmt.Fprintf(&b, "Program  %s", Identity{w.Release, w.Build})
	if w.Unit != "" {
		fmt.Fprintf(&b, ", as the service %s", w.Unit)
	}
	fmt.Fprintf(&b, "\nServer   %s\n", w.Server)
	if w.NodeName != "" {
		fmt.Fprintf(&b, "Node     %s, %s\n", w.NodeName, w.NodeIP)
	}
	fmt.Fprintf(&b, "Data     %s\n", w.DataDir)
	p := w.Process
	fmt.Fprintf(&b, "Memory   %s resident, %s private, %s of it live objects\n", size(p.Memory), size(p.Private), size(p.Heap))
	fmt.Fprintf(&b, "CPU      %.1f%% of one lately, %s since the start; %d goroutines\n", 100*p.CPU,
		time.Duration(p.CPUSeconds*float64(time.Second)).Round(10*time.Millisecond), p.Goroutines)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, part := range w.Parts {
		figures := make([]string, 0, len(part.Figures)+1)
		for _, f := range part.Figures {
			figures = append(figures, f.Name+" "+figure(f))
		}
		figures = append(figures, fmt.Sprint("goroutines ", part.Goroutines))
		fmt.Fprintf(t, "  %s\t%s\t%s\n", part.Name, part.State, strings.Join(figures, ", "))
	}
	_ = t.Flush() // into memory
	return b.String()
}

func figure(f admin.Figure) string {
	switch f.Unit {
	case "bytes":
		return size(int64(f.Value))
	case "":
		return strconv.FormatFloat(f.Value, 'f', -1, 64)
	}
	return strconv.FormatFloat(f.Value, 'f', -1, 64) + " " + f.Unit
}
