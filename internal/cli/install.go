package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"skiff/internal/host"
)

// Install says how skiff becomes a service.
type Install struct {
	// Role is empty for a whole cluster, or "server", or "node".
	Role       string
	Settings   Settings
	ConfigFile string
	// Kubeconfig is a node's way to its server.
	Kubeconfig string
	// Root is the root directory of the system that is written to; empty for this
	// one.
	Root string
	// Program is where the unit finds skiff, on that system.
	Program string
	// Enable makes it start at boot, Start now.
	Enable, Start bool
}

// Installer makes skiff a systemd service, and undoes that.
type Installer interface {
	// Install writes the unit and what it needs. say hears of each thing that was
	// done.
	Install(ctx context.Context, o Install, say func(string)) error
	// Uninstall ends the service of i and removes what Install wrote below root;
	// the data directory stays.
	Uninstall(ctx context.Context, i host.Instance, root string, say func(string)) error
	// StartService starts the service of i, where there is one and systemd runs this
	// machine; started is false otherwise.
	StartService(ctx context.Context, i host.Instance, say func(string)) (started bool, err error)
}

func (c *command) install() *cobra.Command {
	o := Install{}
	cmd := &cobra.Command{
		Use: "install [server|node]", Short: "Make skiff a systemd service that starts with this machine", Args: cobra.MaximumNArgs(1),
		ValidArgs: []string{"server", "node"},
		Long: `Make skiff a systemd service: of a whole cluster (as skiff up), of a control
plane (skiff server), or of a node of a cluster elsewhere (skiff node).

It writes, and says so:
  /usr/local/bin/skiff                      this program (another place: --program)
  /etc/skiff/NAME.yaml                      the settings: what --config and flags say,
                                            over those of an earlier install
  /etc/systemd/system/skiff[-NAME].service  the unit

and has systemd start it, now and at boot. A cluster that runs already is taken
over with its pods. A later install of another skiff upgrades the service in
place: pods go on, connections to the API wait for a moment.

Pods outlive a stop of the service (systemctl stop skiff); skiff down ends them
too. Its log: skiff logs, or journalctl -u skiff.

Where systemd does not run, or with --root, the files are written and nothing is
started: for packages and images of systems.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Role = args[0]
			}
			if (o.Role == "node") != (o.Kubeconfig != "") {
				return errors.New("a node, and only a node, needs --kubeconfig FILE: its way to the server")
			}
			o.Settings, o.ConfigFile = c.set, c.conf
			return c.local.Install(cmd.Context(), o, c.say)
		},
	}
	c.startFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "of a node: how to reach the server, with credentials of a node")
	f.StringVar(&o.Root, "root", "", "write to the system in this directory, and start nothing")
	f.StringVar(&o.Program, "program", "/usr/local/bin/skiff", "where the service finds skiff; this program is copied there")
	f.BoolVar(&o.Enable, "enable", true, "start it at boot")
	f.BoolVar(&o.Start, "start", true, "start it now")
	return cmd
}

func (c *command) uninstall() *cobra.Command {
	var root string
	var purge bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "End the systemd service; the cluster's data stay", Args: cobra.NoArgs,
		Long: `End the systemd service and its pods, and remove what skiff install wrote. The
cluster's data stay: skiff up, or another skiff install, goes on with them.
With --purge they are removed too, with all that the cluster put on this machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, known, err := c.local.Find(c.set)
			if err != nil {
				return err
			}
			if purge && root != "" {
				return errors.New("--purge is for this system: there is no cluster in the one of --root")
			}
			if err := c.local.Uninstall(cmd.Context(), i, root, c.say); err != nil {
				return err
			}
			switch {
			case !known:
				return nil
			case !purge:
				fmt.Fprintf(c.out, "The data of cluster %q stay in %s; skiff reset%s removes them.\n", i.Name, i.DataDir, nameFlag(i))
				return nil
			}
			if err := c.local.Reset(cmd.Context(), i, c.say); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "Cluster %q is removed.\n", i.Name)
			return nil
		},
	}
	cmd.Flags().StringVar(&root, "root", "", "remove from the system in this directory")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the cluster and all its data, too")
	return cmd
}

// say tells of something that was done.
func (c *command) say(s string) { fmt.Fprintln(c.out, " ", s) }
