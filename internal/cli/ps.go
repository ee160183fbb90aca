package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"skiff/internal/api/runpod"
	"skiff/internal/run"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// quoted is a word as a shell reads it back.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c *command) ps() *cobra.Command {
	var ns, format, output string
	var all, everywhere, quiet, whole, latest bool
	var last int
	var filters []string
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: cobra.NoArgs,
		Long: `List the containers of skiff run that run; with -a those that have ended, too, and
with -A the containers of all other pods.

--format takes {{.FIELD}} of: ID, Image, Command, CreatedAt, RunningFor, Ports,
State, Status, Names, Namespace, Pod, Labels.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keep, err := psFilter(filters)
			if err != nil {
				return err
			}
			return c.with(cmd.Context(), ns, func(p *pods) error {
				o := metav1.ListOptions{LabelSelector: runpod.LabelName}
				if everywhere {
					o.LabelSelector = ""
				}
				list, _, err := p.in(ns).List(cmd.Context(), o)
				if err != nil {
					return err
				}
				rows := run.Rows(list, all || latest || last > 0 || len(filters) > 0 && strings.Contains(strings.Join(filters, " "), "status="), time.Now())
				rows = slices.DeleteFunc(rows, func(r run.Row) bool { return !keep(r) })
				if latest {
					last = 1
				}
				if last > 0 && len(rows) > last {
					rows = rows[:last]
				}
				return printRows(c.out, rows, psForm{format: format, output: output, quiet: quiet, whole: whole})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&ns, "namespace", "", "those of one namespace alone")
	f.BoolVarP(&all, "all", "a", false, "those that have ended, too")
	f.BoolVarP(&everywhere, "all-pods", "A", false, "the containers of all pods")
	f.BoolVarP(&quiet, "quiet", "q", false, "names alone")
	f.BoolVar(&whole, "no-trunc", false, "cut nothing short")
	f.BoolVarP(&latest, "latest", "l", false, "the newest alone")
	f.IntVarP(&last, "last", "n", 0, "the newest N")
	f.StringArrayVarP(&filters, "filter", "f", nil, "name=, status=, ancestor= or label=NAME[=VALUE]")
	f.StringVar(&format, "format", "", "a line of each container, such as '{{.Names}} {{.Status}}'; json; table")
	f.StringVarP(&output, "output", "o", "", "json or yaml, for programs")
	return cmd
}

// psFilter reads filters; those of one name add up, those of several must all hold.
func psFilter(filters []string) (func(run.Row) bool, error) {
	by := map[string][]string{}
	for _, f := range filters {
		k, v, ok := strings.Cut(f, "=")
		if !ok || !slices.Contains([]string{"name", "status", "ancestor", "label", "id"}, k) {
			return nil, fmt.Errorf("--filter %q: must be name=, id=, status=, ancestor= or label=", f)
		}
		by[k] = append(by[k], v)
	}
	hit := map[string]func(r run.Row, v string) bool{
		"name":     func(r run.Row, v string) bool { return strings.Contains(r.Names, v) },
		"id":       func(r run.Row, v string) bool { return strings.HasPrefix(r.ID, v) },
		"status":   func(r run.Row, v string) bool { return r.State == v },
		"ancestor": func(r run.Row, v string) bool { return r.Image == v || strings.HasPrefix(r.Image, v+":") },
		"label": func(r run.Row, v string) bool {
			return slices.ContainsFunc(strings.Split(r.Labels, ","), func(l string) bool {
				return l == v || !strings.Contains(v, "=") && strings.HasPrefix(l, v+"=")
			})
		},
	}
	return func(r run.Row) bool {
		for k, vs := range by {
			if !slices.ContainsFunc(vs, func(v string) bool { return hit[k](r, v) }) {
				return false
			}
		}
		return true
	}, nil
}

// psForm is how rows are printed.
type psForm struct {
	format, output string
	quiet, whole   bool
}

func printRows(w io.Writer, rows []run.Row, form psForm) error {
	cut := func(s string, n int) string {
		if r := []rune(s); !form.whole && len(r) > n {
			return string(r[:n-1]) + "…"
		}
		return s
	}
	switch form.output {
	case "":
	case "json", "yaml":
		if rows == nil {
			rows = []run.Row{}
		}
		b, err := json.MarshalIndent(rows, "", "  ")
		if err == nil && form.output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, strings.TrimSuffix(string(b), "\n"))
		return err
	default:
		return fmt.Errorf("--output %s: it must be json or yaml", form.output)
	}
	for i := range rows {
		if rows[i].ID = cut(rows[i].ID, 13); !form.whole {
			rows[i].ID = strings.TrimSuffix(rows[i].ID, "…")
		}
	}
	if form.quiet {
		for _, r := range rows {
			fmt.Fprintln(w, r.Names)
		}
		return nil
	}
	if form.format != "" && form.format != "table" {
		line, table := strings.CutPrefix(form.format, "table ")
		o := &outputFlags{format: strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(line)}
		if !table {
			_, err := each(o, w, rows)
			return err
		}
		tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		if _, err := each(o, tw, append([]run.Row{heads}, rows...)); err != nil {
			return err
		}
		return tw.Flush()
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(tw, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, cut(r.Image, 40), cut(`"`+r.Command+`"`, 22), r.RunningFor, r.Status, r.Ports, r.Names)
	}
	return tw.Flush()
}

// heads are those of the columns of a template.
var heads = run.Row{
	ID: "CONTAINER ID", Image: "IMAGE", Command: "COMMAND", CreatedAt: "CREATED AT", RunningFor: "CREATED", Ports: "PORTS",
	State: "STATE", Status: "STATUS", Names: "NAMES", Namespace: "NAMESPACE", Pod: "POD", Labels: "LABELS",
}

func (c *command) inspect() *cobra.Command {
	var ns, output string
	cmd := &cobra.Command{
		Use: "inspect CONTAINER...", Short: "Print all that is known of containers: their pods", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "json" && output != "yaml" {
				return fmt.Errorf("--output %s: it must be json or yaml", output)
			}
			var found []*corev1.Pod
			err := c.each(cmd.Context(), ns, args, func(p *pods, word string) error {
				pod, _, err := p.find(cmd.Context(), word)
				if err != nil {
					return err
				}
				pod = pod.DeepCopy()
				pod.APIVersion, pod.Kind, pod.ManagedFields = "v1", "Pod", nil
				found = append(found, pod)
				return nil
			})
			if len(found) > 0 {
				if serr := c.structured(found, output); err == nil {
					err = serr
				}
			}
			return err
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().StringVarP(&output, "output", "o", "json", "json or yaml")
	return cmd
}

func (c *command) port() *cobra.Command {
	var ns string
	cmd := &cobra.Command{
		Use: "port CONTAINER", Short: "Print which ports of the host lead to a container", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), ns, args, func(p *pods, word string) error {
				pod, _, err := p.find(cmd.Context(), word)
				if err != nil {
					return err
				}
				for i := range pod.Spec.Containers {
					for _, one := range strings.Split(run.Ports(pod, &pod.Spec.Containers[i]), ", ") {
						if host, to, ok := strings.Cut(one, "->"); ok {
							fmt.Fprintf(c.out, "%s -> %s\n", to, host)
						}
					}
				}
				return nil
			})
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	namespaceFlag(cmd, &ns)
	return cmd
}

// carried runs the kubectl that skiff carries.
func (c *command) carried(cmd *cobra.Command, args ...string) error {
	k := c.kubectl()
	k.SetContext(cmd.Context())
	return k.RunE(k, args)
}

func (c *command) copy() *cobra.Command {
	var ns string
	cmd := &cobra.Command{
		Use: "cp CONTAINER:PATH PATH | cp PATH CONTAINER:PATH", Short: "Copy files from or to a container", Args: cobra.ExactArgs(2),
		Long: "Copy files from or to a container. It needs tar in the container.",
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.with(cmd.Context(), ns, func(p *pods) error {
				remote := 0
				for i, a := range args {
					word, rest, ok := strings.Cut(a, ":")
					if !ok || strings.HasPrefix(a, "/") || strings.HasPrefix(a, ".") {
						continue
					}
					pod, _, err := p.find(cmd.Context(), word)
					if err != nil {
						return err
					}
					args[i] = pod.Namespace + "/" + pod.Name + ":" + rest
					remote++
				}
				if remote != 1 {
					return fmt.Errorf("one of %s and %s must be CONTAINER:PATH", args[0], args[1])
				}
				return nil
			})
			if err != nil {
				return err
			}
			return c.carried(cmd, "cp", args[0], args[1])
		},
	}
	namespaceFlag(cmd, &ns)
	return cmd
}

func (c *command) top() *cobra.Command {
	var ns string
	cmd := &cobra.Command{
		Use: "top CONTAINER [PS-OPTIONS]", Short: "List the processes of a container", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), ns, func(p *pods) error {
				pod, _, err := p.find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				pids, err := p.door.Processes(cmd.Context(), run.ID(pod))
				if err != nil {
					return err
				}
				options := args[1:]
				if len(options) == 0 {
					options = []string{"-f"}
				}
				list := make([]string, len(pids))
				for i, pid := range pids {
					list[i] = fmt.Sprint(pid)
				}
				ps := exec.CommandContext(cmd.Context(), "ps", append(options, "-p", strings.Join(list, ","))...)
				ps.Stdout, ps.Stderr = c.out, os.Stderr
				return ps.Run()
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().SetInterspersed(false)
	return cmd
}
