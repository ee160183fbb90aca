package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
)

// imageRow is an image under one of its names, with the fields that docker's
// templates have.
type imageRow struct {
	Repository   string
	Tag          string
	Digest       string
	ID           string
	CreatedAt    string
	CreatedSince string
	Size         string
	// Containers that need it.
	Containers string
	Platform   string

	name  string // as people write it
	image *admin.Image
}

const none = "<none>"

// familiar is a canonical name as people write it.
func familiar(name string) string {
	rest, ok := strings.CutPrefix(name, "docker.io/")
	if !ok {
		return name
	}
	if short := strings.TrimPrefix(rest, "library/"); !strings.Contains(short, "/") {
		return short
	}
	return rest
}

// rows are an image's lines: one for each name, or one of a nameless image.
func rows(i *admin.Image, now time.Time, whole bool) []imageRow {
	r := imageRow{
		Repository: none, Tag: none, Digest: none, ID: i.ID, Size: size(i.Size), Platform: i.Platform,
		CreatedAt: i.Created.Format("2006-01-02 15:04:05 -0700 MST"), CreatedSince: since(i.Created, now),
		name: none, image: i, Containers: fmt.Sprint(len(i.Users)),
	}
	if !whole {
		r.ID = shortID(i.ID)
	}
	digests := map[string]string{}
	for _, d := range i.Digests {
		repo, digest := repository(d)
		digests[repo] = digest
	}
	var out []imageRow
	for _, n := range i.Names {
		one := r
		repo, tag := repository(n)
		one.Repository, one.Tag, one.name = familiar(repo), tag, familiar(n)
		if d := digests[repo]; d != "" {
			one.Digest = d
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		for repo, d := range digests { // pulled by digest alone
			one := r
			one.Repository, one.Digest, one.name = familiar(repo), d, familiar(repo)+"@"+d
			out = append(out, one)
		}
		sort.Slice(out, func(a, b int) bool { return out[a].name < out[b].name })
	}
	if len(out) == 0 {
		out = append(out, r)
	}
	return out
}

// since is how long ago, in one unit.
func since(t, now time.Time) string {
	if t.IsZero() || t.Unix() == 0 {
		return "N/A"
	}
	d := now.Sub(t)
	for _, u := range []struct {
		name string
		of   time.Duration
		from time.Duration // shown in this unit from here on
	}{
		{"year", 365 * 24 * time.Hour, 2 * 365 * 24 * time.Hour}, {"month", 30 * 24 * time.Hour, 60 * 24 * time.Hour},
		{"week", 7 * 24 * time.Hour, 14 * 24 * time.Hour}, {"day", 24 * time.Hour, 48 * time.Hour},
		{"hour", time.Hour, time.Hour}, {"minute", time.Minute, time.Minute},
	} {
		if d >= u.from {
			n := int(d / u.of)
			if n == 1 {
				return "1 " + u.name + " ago"
			}
			return fmt.Sprintf("%d %ss ago", n, u.name)
		}
	}
	return fmt.Sprintf("%d seconds ago", max(int(d/time.Second), 0))
}

// imageFilter is what --filter asks for.
type imageFilter func(r *imageRow) bool

// parseFilters reads docker's filters of images; all must hold, save that one of
// several references is enough.
func parseFilters(in []string, all []admin.Image) (imageFilter, error) {
	var fs []imageFilter
	var patterns []string
	for _, f := range in {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("--filter %q: must be KEY=VALUE", f)
		}
		switch k {
		case "dangling":
			if v != "true" && v != "false" {
				return nil, fmt.Errorf("--filter %q: must be true or false", f)
			}
			fs = append(fs, func(r *imageRow) bool { return (r.name == none) == (v == "true") })
		case "label":
			name, value, valued := strings.Cut(v, "=")
			fs = append(fs, func(r *imageRow) bool {
				got, ok := r.image.Labels[name]
				return ok && (!valued || got == value)
			})
		case "reference":
			if _, err := path.Match(v, ""); err != nil {
				return nil, fmt.Errorf("--filter %q: %w", f, err)
			}
			patterns = append(patterns, v)
		case "before", "since":
			at := slices.IndexFunc(all, func(i admin.Image) bool { return means(&i, v) })
			if at < 0 {
				return nil, fmt.Errorf("--filter %q: image not found", f)
			}
			t := all[at].Created
			fs = append(fs, func(r *imageRow) bool {
				if k == "before" {
					return r.image.Created.Before(t)
				}
				return r.image.Created.After(t)
			})
		case "until":
			t, err := moment(v, time.Now())
			if err != nil {
				return nil, fmt.Errorf("--filter %q: %w", f, err)
			}
			fs = append(fs, func(r *imageRow) bool { return r.image.Created.Before(t) })
		default:
			return nil, fmt.Errorf("--filter %q: must be one of before, dangling, label, reference, since, until", f)
		}
	}
	return func(r *imageRow) bool {
		for _, f := range fs {
			if !f(r) {
				return false
			}
		}
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return matches(p, r) })
	}, nil
}

// matches tells whether a pattern means a row: its name, or its repository.
func matches(pattern string, r *imageRow) bool {
	for _, s := range []string{r.name, r.Repository} {
		if ok, err := path.Match(pattern, s); err == nil && ok {
			return true
		}
	}
	return false
}

// means tells whether a user's word for an image means this one.
func means(i *admin.Image, word string) bool {
	if hex := strings.TrimPrefix(word, "sha256:"); len(hex) >= 4 && strings.HasPrefix(strings.TrimPrefix(i.ID, "sha256:"), hex) {
		return true
	}
	return slices.ContainsFunc(append(slices.Clone(i.Names), i.Digests...), func(n string) bool {
		return n == word || familiar(n) == word || familiar(n) == word+":latest"
	})
}

// moment reads a time, or a duration before now.
func moment(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: must be a duration such as 24h, or a time such as 2006-01-02T15:04:05", s)
}

// outputFlags choose between a table, JSON and a template.
type outputFlags struct{ output, format string }

func (o *outputFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "json")
	cmd.Flags().StringVar(&o.format, "format", "", "Go template for each, as docker's; or json, an object on each line")
}

func (o *outputFlags) check() error {
	if o.output != "" && o.output != "json" {
		return fmt.Errorf("--output %q: must be json", o.output)
	}
	if o.output != "" && o.format != "" {
		return errors.New("--output and --format are mutually exclusive")
	}
	return nil
}

// each writes values by the template; false where none was asked for.
func each[T any](o *outputFlags, w io.Writer, values []T) (bool, error) {
	if o.format == "" {
		return false, nil
	}
	text := o.format
	if text == "json" {
		text = "{{json .}}"
	}
	t, err := template.New("").Funcs(templateFuncs).Option("missingkey=error").Parse(text)
	if err != nil {
		return true, fmt.Errorf("--format: %w", err)
	}
	for _, v := range values {
		if err := t.Execute(w, v); err != nil {
			return true, fmt.Errorf("--format: %w", err)
		}
		fmt.Fprintln(w)
	}
	return true, nil
}

// templateFuncs are those that docker's templates have.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	},
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"split": strings.Split,
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (c *command) imageList() *cobra.Command {
	var filters []string
	var digests, quiet, whole, all bool
	var o outputFlags
	cmd := &cobra.Command{
		Use: "ls [NAME]", Aliases: []string{"list"}, Short: "List images", Args: cobra.MaximumNArgs(1),
		Long: `List images; with NAME, those that it matches ("web", "web:1", "team/*").

SIZE is that of the layers, unpacked; images share layers. USED BY counts the
containers that need an image, stopped ones too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			for _, a := range args {
				filters = append(filters, "reference="+a)
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				images, err := a.Images(cmd.Context())
				if err != nil {
					return err
				}
				keep, err := parseFilters(filters, images)
				if err != nil {
					return err
				}
				var list []imageRow
				var kept []admin.Image
				for i := range images {
					before := len(list)
					for _, r := range rows(&images[i], time.Now(), whole) {
						if keep(&r) {
							list = append(list, r)
						}
					}
					if len(list) > before {
						kept = append(kept, images[i])
					}
				}
				switch {
				case quiet:
					for i := range kept {
						id := kept[i].ID
						if !whole {
							id = shortID(id)
						}
						fmt.Fprintln(c.out, id)
					}
					return nil
				case o.output == "json":
					if kept == nil {
						kept = []admin.Image{}
					}
					return writeJSON(c.out, kept)
				}
				if done, err := each(&o, c.out, list); done {
					return err
				}
				return imageTable(c.out, list, digests)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "all images (they are always listed)")
	f.BoolVar(&digests, "digests", false, "show digests")
	f.BoolVarP(&quiet, "quiet", "q", false, "print IDs alone")
	f.BoolVar(&whole, "no-trunc", false, "print whole IDs")
	f.StringArrayVarP(&filters, "filter", "f", nil, "dangling=true|false, label=KEY[=VALUE], reference=PATTERN, before=IMAGE, since=IMAGE, until=TIME")
	o.add(cmd)
	return cmd
}

func imageTable(out io.Writer, list []imageRow, digests bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	digest := func(s string) string {
		if !digests {
			return ""
		}
		return s + "\t"
	}
	fmt.Fprintf(w, "IMAGE\t%sID\tCREATED\tSIZE\tUSED BY\n", digest("DIGEST"))
	for _, r := range list {
		used := ""
		if len(r.image.Users) > 0 {
			used = r.Containers
		}
		// Whole names, so that what is copied from here means the same everywhere.
		name := r.name
		if r.Tag != none {
			for _, n := range r.image.Names {
				if familiar(n) == r.name {
					name = n
				}
			}
		}
		fmt.Fprintf(w, "%s\t%s%s\t%s\t%s\t%s\n", name, digest(r.Digest), r.ID, r.CreatedSince, r.Size, used)
	}
	return w.Flush()
}
