package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
)

// withImages calls f with a client of the image half: the running skiff's, or one
// that this command starts for as long as f takes.
func (c *command) withImages(ctx context.Context, f func(*admin.Client) error) error {
	a, i, _, err := c.find()
	if err != nil {
		return err
	}
	if _, err := a.Status(ctx); err == nil {
		return f(a)
	} else if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("images need root: run it with sudo")
	}
	h, closeStore, err := c.local.Images(ctx, i)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "skiff-")
	if err != nil {
		return errors.Join(err, closeStore())
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "images.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return errors.Join(err, closeStore())
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	err = f(admin.Dial(path))
	if cerr := srv.Close(); err == nil {
		err = cerr
	}
	<-done
	return errors.Join(err, closeStore())
}

func (c *command) image() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Pull, push, list, import, export and remove images"}
	cmd.AddCommand(c.imageList(), c.imagePull(), c.imagePush(), c.imageImport(), c.imageExport(), c.imageRemove(), c.imageTag(),
		c.imagePrune(), c.imageInspect(), c.imageHistory(), c.imageLogin(), c.imageLogout())
	return cmd
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1fGiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1fMiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1fKiB", float64(n)/(1<<10))
}

func shortID(id string) string {
	_, hex, _ := strings.Cut(id, ":")
	if len(hex) > 12 {
		hex = hex[:12]
	}
	return hex
}

func (c *command) imageImport() *cobra.Command {
	var o admin.ImportOptions
	cmd := &cobra.Command{
		Use: "import FILE [NAME]", Short: "Import an image archive, or the tar of a root file system; - is standard input",
		Long: `Import an image archive (docker save, OCI), or the tar of a root file system.

With --rootfs the tar is a root file system, and the image gets NAME and the
command, entrypoint and environment of the flags.`,
		Example: "  skiff image import web.tar\n  tar -C rootfs -c . | skiff image import --rootfs --cmd /bin/sh - busybox:1",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.Reader(os.Stdin)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			if len(args) == 2 {
				o.Names = []string{args[1]}
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				made, err := a.Import(cmd.Context(), in, o)
				if err != nil {
					return err
				}
				for _, i := range made {
					fmt.Fprintf(c.out, "Imported %s %s (%s)\n", shortID(i.ID), strings.Join(i.Names, " "), size(i.Size))
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.RootFS, "rootfs", false, "the tar is a root file system")
	f.StringArrayVar(&o.Cmd, "cmd", nil, "command of the image, one word each time")
	f.StringArrayVar(&o.Entrypoint, "entrypoint", nil, "entrypoint of the image, one word each time")
	f.StringArrayVar(&o.Env, "env", nil, "environment of the image, NAME=VALUE")
	f.StringVar(&o.WorkingDir, "workdir", "", "working directory of the image")
	f.StringVar(&o.User, "user", "", "user of the image")
	return cmd
}

func (c *command) imageExport() *cobra.Command {
	var out, format string
	cmd := &cobra.Command{
		Use: "export IMAGE...", Short: "Write images as an archive", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "docker" && format != "oci" {
				return fmt.Errorf("--format %q: must be docker or oci", format)
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				if out == "" || out == "-" {
					return a.Export(cmd.Context(), os.Stdout, args, format)
				}
				f, err := os.Create(out)
				if err != nil {
					return err
				}
				if err := a.Export(cmd.Context(), f, args, format); err != nil {
					return errors.Join(err, f.Close(), os.Remove(out))
				}
				return f.Close()
			})
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write (default: standard output)")
	cmd.Flags().StringVar(&format, "format", "docker", "docker or oci")
	return cmd
}

func (c *command) imageTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image a further name", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withImages(cmd.Context(), func(a *admin.Client) error { return a.Tag(cmd.Context(), args[0], args[1]) })
		},
	}
}

func (c *command) build() *cobra.Command {
	var req admin.BuildRequest
	var file string
	var buildArgs, labels []string
	var quiet bool
	cmd := &cobra.Command{
		Use: "build [CONTEXT]", Short: "Build an image from a Dockerfile, into the store that pods run from",
		Example: "  skiff build -t web:1 .", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			abs, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			if st, err := os.Stat(abs); err != nil || !st.IsDir() {
				return fmt.Errorf("build context %q: must be a directory", dir)
			}
			req.Context = abs
			if file == "-" {
				if req.Content, err = io.ReadAll(os.Stdin); err != nil {
					return err
				}
			} else if file != "" {
				// As docker: relative to where the command runs.
				if req.Content, err = os.ReadFile(file); err != nil {
					return err
				}
				req.Dockerfile = filepath.Base(file)
			}
			if req.Args, err = pairs("--build-arg", buildArgs); err != nil {
				return err
			}
			if req.Labels, err = pairs("--label", labels); err != nil {
				return err
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				w := io.Writer(os.Stderr)
				if quiet {
					w = io.Discard
				}
				p := c.local.BuildProgress(w)
				made, err := a.Build(cmd.Context(), req, p)
				if cerr := p.Close(); err == nil {
					err = cerr
				}
				if err != nil {
					return err
				}
				if quiet {
					fmt.Fprintln(c.out, made.ID)
					return nil
				}
				fmt.Fprintf(c.out, "Built %s %s (%s)\n", shortID(made.ID), strings.Join(made.Names, " "), size(made.Size))
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&req.Tags, "tag", "t", nil, "name of the image")
	f.StringVarP(&file, "file", "f", "", "the Dockerfile (default: CONTEXT/Dockerfile; - is standard input)")
	f.StringVar(&req.Target, "target", "", "stage to build")
	f.StringArrayVar(&buildArgs, "build-arg", nil, "NAME=VALUE of an ARG")
	f.StringArrayVar(&labels, "label", nil, "NAME=VALUE, a label of the image")
	f.BoolVar(&req.NoCache, "no-cache", false, "run every instruction")
	f.BoolVar(&req.Pull, "pull", false, "ask registries for base images even where they are stored")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the image's ID alone")
	return cmd
}

func pairs(flag string, in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range in {
		k, v, ok := strings.Cut(p, "=")
		if k == "" {
			return nil, fmt.Errorf("%s %q: must be NAME=VALUE", flag, p)
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue
			}
		}
		out[k] = v
	}
	return out, nil
}
