package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/pki"
)

// Certificates are those of a cluster on this machine.
type Certificates interface {
	// Certificates lists them, whether skiff runs or not.
	Certificates(i host.Instance) ([]pki.Certificate, error)
	// RenewCertificates issues those of the names anew, all where there is none, and
	// the kubeconfigs of them, while skiff does not run.
	RenewCertificates(ctx context.Context, s Settings, names []string) ([]string, error)
}

const certsLong = `List the cluster's certificates: whose each is, which authority signed it, until
when it holds.

Certificates of servers and of skiff's own clients hold for a year. skiff renews
each when a third of that is left, without a restart and without breaking a
connection, and writes the kubeconfigs in its data directory anew. A copy of one
(in ~/.kube/config, say) is good until the certificate in it ends: copy it again
before. A node elsewhere (skiff node) has its certificate in its kubeconfig, which
holds for a year too and is not renewed by itself: make a new file with skiff
kubeconfig --node NAME and put it in the place of the old one; the node takes it up
without a restart. It warns in its log for the last 30 days.

Authorities hold for ten years and are never renewed: what has been told to trust
one would not trust another. For the last year skiff warns in its log and in skiff
certs. When an authority has ended, no client trusts the servers any more, and
skiff refuses to start. To replace it, at any time before or after:

  skiff down --keep-pods                  pods go on
  mv DATA-DIR/pki/ca.* /somewhere/else    the authority and its key
  skiff up                                makes another one, and of it all
                                          certificates and kubeconfigs

Then copy kubeconfigs and make those of nodes again. Tokens of service accounts
stay good: they are signed by another key. Pods get the new authority in their
volumes within a minute or two; a program that reads it only at its start has to
be started again.`

func (c *command) certs() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "certs", Short: "List the cluster's certificates, or renew them", Long: certsLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, i, err := c.existing()
			if err != nil {
				return err
			}
			all, err := c.local.Certificates(i)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(c.out)
				e.SetIndent("", "  ")
				return e.Encode(all)
			case "":
				_, err := fmt.Fprint(c.out, certTable(all, time.Now()))
				return err
			}
			return fmt.Errorf("--output %q: must be json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, for programs")
	cmd.AddCommand(c.certsRenew())
	return cmd
}

func (c *command) certsRenew() *cobra.Command {
	return &cobra.Command{
		Use: "renew [NAME...]", Short: "Issue certificates anew now: those named, or all",
		Long: `Issue certificates anew now, with new keys: those named, or all but the
authorities. A running skiff takes them up at once; connections that are open go
on with the old ones. Certificates are not revoked: the old ones stay good until
they end.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			a, _, err := c.existing()
			if err != nil {
				return err
			}
			issued, err := a.RenewCertificates(cmd.Context(), names)
			if errors.Is(err, admin.ErrNotRunning) {
				issued, err = c.local.RenewCertificates(cmd.Context(), c.set, names)
			}
			for _, n := range issued {
				fmt.Fprintln(c.out, "renewed", n)
			}
			return err
		},
	}
}

// certTable is the list for people.
func certTable(all []pki.Certificate, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tOWNER\tUSE\tCA\tEXPIRES\tLEFT\tNOTE")
	for _, c := range all {
		owner := c.Owner
		if len(c.Groups) > 0 {
			owner += " (" + strings.Join(c.Groups, ", ") + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			c.Name, owner, strings.Join(c.Uses, ","), c.CA, c.NotAfter.UTC().Format(time.DateOnly), daysLeft(c.NotAfter.Sub(now)), certNote(c, now))
	}
	_ = w.Flush() // into memory
	return b.String()
}

func daysLeft(d time.Duration) string {
	switch {
	case d <= 0:
		return "none"
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// certNote says what of a certificate is worth a word.
func certNote(c pki.Certificate, now time.Time) string {
	authority := slices.Contains(c.Uses, "authority")
	switch {
	case !now.Before(c.NotAfter):
		return "expired"
	case now.Before(c.NotBefore):
		return "not valid yet"
	case authority && c.NotAfter.Sub(now) < 365*24*time.Hour:
		return "ends soon and is not renewed: see skiff certs --help"
	case authority:
		return ""
	case now.After(c.Renews):
		return "due: renewed by a running skiff within hours"
	}
	return "renewed from " + c.Renews.UTC().Format(time.DateOnly)
}
