package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"skiff/internal/admin"
)

func (c *command) imageInspect() *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use: "inspect IMAGE...", Short: "Print all that is known of images, as docker does", Args: cobra.MinimumNArgs(1),
		Example: "  skiff image inspect web:1\n  skiff image inspect -f '{{.Config.Cmd}}' web:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("--output %q: must be json", output)
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				found := []json.RawMessage{}
				var values []any
				var errs []error
				for _, ref := range args {
					raw, err := a.Inspect(cmd.Context(), ref)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					var v any
					if err := json.Unmarshal(raw, &v); err != nil {
						return err
					}
					found, values = append(found, raw), append(values, v)
				}
				if format == "" || format == "json" {
					errs = append(errs, writeJSON(c.out, found))
				} else if _, err := each(&outputFlags{format: format}, c.out, values); err != nil {
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Go template")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json (it is in any case)")
	return cmd
}

// historyRow is a step with the fields that docker's templates have.
type historyRow struct {
	ID, CreatedAt, CreatedSince, CreatedBy, Size, Comment string
}

func (c *command) imageHistory() *cobra.Command {
	var whole, quiet, plain bool
	var o outputFlags
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Tell how an image came to be, the last step first", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				raw, err := a.Inspect(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				var img struct {
					ID string `json:"Id"`
				}
				if err := json.Unmarshal(raw, &img); err != nil {
					return err
				}
				steps, err := a.History(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if o.output == "json" {
					return writeJSON(c.out, steps)
				}
				list := historyRows(img.ID, steps, time.Now(), whole, plain)
				if quiet {
					for _, r := range list {
						fmt.Fprintln(c.out, r.ID)
					}
					return nil
				}
				if done, err := each(&o, c.out, list); done {
					return err
				}
				w := tabwriter.NewWriter(c.out, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tCREATED\tCREATED BY\tSIZE\tCOMMENT")
				for _, r := range list {
					created := r.CreatedSince
					if plain {
						created = r.CreatedAt
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, created, r.CreatedBy, r.Size, r.Comment)
				}
				return w.Flush()
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&whole, "no-trunc", false, "print everything in full")
	f.BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	f.BoolVar(&plain, "absolute", false, "print times and bytes as they are")
	o.add(cmd)
	return cmd
}

// historyRows are the lines of a history. Only the image itself has an ID: what it
// was made from on the way is no image.
func historyRows(id string, steps []admin.Step, now time.Time, whole, plain bool) []historyRow {
	var out []historyRow
	for i, s := range steps {
		r := historyRow{
			ID: "<missing>", CreatedAt: s.Created.Format(time.RFC3339), CreatedSince: since(s.Created, now),
			CreatedBy: strings.Join(strings.Fields(s.CreatedBy), " "), Size: size(s.Size), Comment: s.Comment,
		}
		if i == 0 {
			r.ID = id
			if !whole {
				r.ID = shortID(id)
			}
		}
		if plain {
			r.Size = fmt.Sprint(s.Size)
		} else if s.Size == 0 {
			r.Size = "0B"
		}
		const widest = 45
		if text := []rune(r.CreatedBy); !whole && len(text) > widest {
			r.CreatedBy = string(text[:widest-1]) + "…"
		}
		out = append(out, r)
	}
	return out
}

func (c *command) imageRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm IMAGE...", Aliases: []string{"remove"}, Short: "Remove names, or images by their ID", Args: cobra.MinimumNArgs(1),
		Long: `Remove names, or images by their ID. With its last name an image goes.

An image that a container needs stays, unless --force is given: then the
container keeps what it has, and cannot be made again without a pull.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				var errs []error
				for _, ref := range args {
					gone, err := a.Remove(cmd.Context(), ref, force)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					c.removed(gone)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also what containers need")
	return cmd
}

func (c *command) removed(r admin.Removed) {
	for _, n := range r.Untagged {
		fmt.Fprintf(c.out, "Untagged: %s\n", n)
	}
	for _, id := range r.Deleted {
		fmt.Fprintf(c.out, "Deleted: %s\n", id)
	}
}

func (c *command) imagePrune() *cobra.Command {
	var req admin.PruneRequest
	var force bool
	var filters []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images without a name, and what unfinished pulls left", Args: cobra.NoArgs,
		Long: `Remove images without a name, and what unfinished pulls left. With --all, every
image that no container needs goes. What a container needs stays in any case.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range filters {
				k, v, ok := strings.Cut(f, "=")
				switch {
				case !ok:
					return fmt.Errorf("--filter %q: must be KEY=VALUE", f)
				case k == "until":
					t, err := moment(v, time.Now())
					if err != nil {
						return fmt.Errorf("--filter %q: %w", f, err)
					}
					req.Until = t
				case k == "label":
					req.Labels = append(req.Labels, v)
				case k == "label!":
					req.NoLabels = append(req.NoLabels, v)
				default:
					return fmt.Errorf("--filter %q: must be one of until, label, label!", f)
				}
			}
			if !force {
				what := "all images without a name"
				if req.All {
					what = "all images that no container needs"
				}
				ok, err := c.confirm("This will remove " + what + ".")
				if err != nil || !ok {
					return err
				}
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				gone, err := a.Prune(cmd.Context(), req)
				if err != nil {
					return err
				}
				c.removed(gone)
				fmt.Fprintf(c.out, "Total reclaimed space: %s\n", size(int64(gone.Reclaimed)))
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&req.All, "all", "a", false, "also images with names, where no container needs them")
	f.BoolVarP(&force, "force", "f", false, "do not ask")
	f.StringArrayVar(&filters, "filter", nil, "until=TIME or DURATION, label=KEY[=VALUE], label!=KEY[=VALUE]")
	return cmd
}

// confirm asks a question on the terminal. Where there is none to ask on, that is
// an error.
func (c *command) confirm(warning string) (bool, error) {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return false, errors.New("no terminal to ask on: say --force")
	}
	fmt.Fprintf(c.err, "WARNING! %s\nAre you sure you want to continue? [y/N] ", warning)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && line == "" {
		return false, nil
	}
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes", nil
}
