package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
)

// buildFlags are those of skiff build, as docker build has them.
type buildFlags struct {
	file, progress, iidFile, metadataFile, call, shmSize     string
	args, labels, annotations, secrets, ssh, contexts, hosts []string
	allow, outputs, cacheFrom, cacheTo                       []string
	quiet, check, load, push                                 bool
}

func (c *command) build() *cobra.Command {
	var req admin.BuildRequest
	var b buildFlags
	cmd := &cobra.Command{
		Use: "build [CONTEXT]", Short: "Build an image from a Dockerfile, into the store that pods run from",
		Long: `Build an image from a Dockerfile, into the store that pods run from.

CONTEXT is the directory that COPY and ADD see (default: the current one); - takes
the Dockerfile from standard input, without a context. docs/dockerfile.md lists
what of the language and of docker's flags there is.`,
		Example: `  skiff build -t web:1 .
  skiff build --secret id=token,env=TOKEN --target test .
  skiff build -o out .     # the files of the last stage, into a directory
  skiff build --push -t registry.example.com/app:1 --cache-from registry.example.com/app:cache \
    --cache-to type=registry,ref=registry.example.com/app:cache,mode=max .`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if err := b.fill(&req, dir, os.Stdin); err != nil {
				return err
			}
			return c.runBuild(cmd.Context(), req, b)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&req.Tags, "tag", "t", nil, "name of the image; may be given several times")
	f.StringVarP(&b.file, "file", "f", "", "the Dockerfile (default: CONTEXT/Dockerfile; - is standard input)")
	f.StringVar(&req.Target, "target", "", "stage to build")
	f.StringVar(&req.Platform, "platform", "", "platform of the image, OS/ARCH (default: this machine's)")
	f.StringArrayVar(&b.args, "build-arg", nil, "NAME=VALUE of an ARG; the environment's value without =VALUE")
	f.StringArrayVar(&b.labels, "label", nil, "NAME=VALUE, a label of the image")
	f.StringArrayVar(&b.annotations, "annotation", nil, "NAME=VALUE, an annotation of the image's manifest")
	f.StringArrayVar(&b.secrets, "secret", nil, "id=ID[,src=FILE|,env=VARIABLE]: a secret for RUN --mount=type=secret")
	f.StringArrayVar(&b.ssh, "ssh", nil, "default|ID[=SOCKET]: an ssh agent for RUN --mount=type=ssh (default: $SSH_AUTH_SOCK)")
	f.StringArrayVar(&b.contexts, "build-context", nil, "NAME=DIRECTORY|docker-image://IMAGE: a further context")
	f.BoolVar(&req.NoCache, "no-cache", false, "run every instruction")
	f.StringSliceVar(&req.NoCacheFilter, "no-cache-filter", nil, "stages whose instructions all run")
	f.StringArrayVar(&b.cacheFrom, "cache-from", nil, "IMAGE, type=registry,ref=IMAGE or type=local,src=DIRECTORY: take results from what --cache-to wrote")
	f.StringArrayVar(&b.cacheTo, "cache-to", nil, "type=inline (into the image), type=registry,ref=IMAGE or type=local,dest=DIRECTORY; with mode=max the results of all stages")
	f.BoolVar(&req.Pull, "pull", false, "ask registries for base images even where they are stored")
	f.StringArrayVarP(&b.outputs, "output", "o", nil, "type=local|tar|oci|docker,dest=PATH, or a directory, or - for a tar on standard output")
	f.BoolVar(&b.load, "load", true, "put the image into the store: what happens anyway")
	f.BoolVar(&b.push, "push", false, "push the image to the registries that its names say; the same as -o type=registry")
	f.StringVar(&b.progress, "progress", "auto", "auto, plain, tty, quiet or rawjson")
	f.BoolVarP(&b.quiet, "quiet", "q", false, "print the image's ID alone")
	f.StringVar(&b.iidFile, "iidfile", "", "file that gets the image's ID")
	f.StringVar(&b.metadataFile, "metadata-file", "", "file that gets what was built, as JSON")
	f.BoolVar(&b.check, "check", false, "check the Dockerfile and build nothing")
	f.StringVar(&b.call, "call", "build", "build or check")
	f.StringSliceVar(&b.allow, "allow", nil, "security.insecure permits RUN --security=insecure; network.host is permitted anyway")
	f.StringVar(&req.Network, "network", "", "network of RUN: default, host or none")
	f.StringArrayVar(&b.hosts, "add-host", nil, "NAME:ADDRESS, a further line of /etc/hosts of RUN")
	f.StringVar(&b.shmSize, "shm-size", "", "size of /dev/shm of RUN (default 64m)")
	cmd.AddCommand(c.buildPrune())
	return cmd
}

// fill turns flags into a request; paths become absolute.
func (b *buildFlags) fill(req *admin.BuildRequest, dir string, stdin io.Reader) error {
	var err error
	if dir == "-" {
		if b.file != "" {
			return errors.New("with - as the context, standard input is the Dockerfile: -f cannot be given too")
		}
		if req.Content, err = io.ReadAll(stdin); err != nil {
			return err
		}
		if len(req.Content) > 262 && string(req.Content[257:262]) == "ustar" || strings.HasPrefix(string(req.Content), "\x1f\x8b") {
			return errors.New("a context as an archive on standard input is not supported: unpack it, and give its directory")
		}
	} else if err := b.context(req, dir, stdin); err != nil {
		return err
	}
	if req.Args, err = pairs("--build-arg", b.args); err != nil {
		return err
	}
	if req.Labels, err = pairs("--label", b.labels); err != nil {
		return err
	}
	if req.Annotations, err = annotations(b.annotations); err != nil {
		return err
	}
	if req.Secrets, err = secrets(b.secrets); err != nil {
		return err
	}
	if req.SSH, err = agents(b.ssh); err != nil {
		return err
	}
	if req.Contexts, err = contexts(b.contexts); err != nil {
		return err
	}
	if req.Hosts, err = hosts(b.hosts); err != nil {
		return err
	}
	if req.ShmSize, err = byteSize(b.shmSize); err != nil {
		return fmt.Errorf("--shm-size %q: %w", b.shmSize, err)
	}
	if req.CacheFrom, err = cacheSources(b.cacheFrom); err != nil {
		return err
	}
	if req.CacheTo, err = cacheTargets(b.cacheTo); err != nil {
		return err
	}
	for _, a := range b.allow {
		switch a {
		case "security.insecure":
			req.Insecure = true
		case "network.host":
		default:
			return fmt.Errorf("--allow %q: must be security.insecure or network.host", a)
		}
	}
	if req.Network != "" && !slices.Contains([]string{"default", "host", "none"}, req.Network) {
		return fmt.Errorf("--network %q: must be default, host or none", req.Network)
	}
	if strings.Contains(req.Platform, ",") {
		return fmt.Errorf("--platform %q: an image is built for one platform at a time", req.Platform)
	}
	switch b.call {
	case "build":
	case "check", "lint":
		b.check = true
	default:
		return fmt.Errorf("--call %q: must be build or check", b.call)
	}
	req.Check = b.check
	if err := b.output(req); err != nil {
		return err
	}
	switch {
	case !b.push:
	case len(req.Tags) == 0:
		return errors.New("--push: a tag is needed: give a name with --tag")
	case req.OutputType != "":
		return fmt.Errorf("--push and --output type=%s exclude each other: what is pushed is an image of the store", req.OutputType)
	case b.check:
		return errors.New("--push and --check exclude each other: a check builds nothing")
	}
	return nil
}

// context finds the directory and its Dockerfile.
func (b *buildFlags) context(req *admin.BuildRequest, dir string, stdin io.Reader) error {
	if strings.Contains(dir, "://") || strings.HasPrefix(dir, "git@") {
		return fmt.Errorf("build context %q: a repository or URL as the context is not supported: clone it, or ADD it", dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return fmt.Errorf("build context %q: must be a directory", dir)
	}
	req.Context = abs
	switch b.file {
	case "":
	case "-":
		req.Content, err = io.ReadAll(stdin)
	default:
		// As docker: relative to where the command runs, or else to the context.
		if req.Dockerfile, err = filepath.Abs(b.file); err != nil {
			return err
		}
		if _, serr := os.Stat(req.Dockerfile); errors.Is(serr, os.ErrNotExist) && !filepath.IsAbs(b.file) {
			if inside := filepath.Join(abs, b.file); fileExists(inside) {
				req.Dockerfile = inside
			}
		}
		req.Content, err = os.ReadFile(req.Dockerfile)
	}
	return err
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// output reads -o.
func (b *buildFlags) output(req *admin.BuildRequest) error {
	if len(b.outputs) == 0 {
		return nil
	}
	if len(b.outputs) > 1 {
		return errors.New("--output can be given once")
	}
	o, push := b.outputs[0], false
	if o == "-" {
		req.OutputType, req.OutputDest = "tar", "-"
		return nil
	}
	if !strings.Contains(o, "=") {
		req.OutputType, req.OutputDest = "local", o
	} else {
		fields, err := csvFields(o, "type", "dest", "name", "tar", "push")
		if err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		req.OutputType, req.OutputDest = fields["type"], fields["dest"]
		push = fields["push"] == "true"
		if name := fields["name"]; name != "" {
			req.Tags = append(req.Tags, strings.Split(name, ",")...)
		}
	}
	switch req.OutputType {
	case "image":
		req.OutputType = ""
		b.push = b.push || push
		return nil
	case "local":
		if req.OutputDest == "" {
			return errors.New("--output: type=local needs dest=DIRECTORY")
		}
	case "docker":
		if req.OutputDest == "" { // into the store
			req.OutputType = ""
			return nil
		}
	case "tar", "oci":
		if req.OutputDest == "" {
			req.OutputDest = "-"
		}
	case "registry":
		req.OutputType, b.push = "", true
		return nil
	default:
		return fmt.Errorf("--output type %q: must be image, local, tar, oci, docker or registry", req.OutputType)
	}
	if req.OutputDest == "-" {
		return nil
	}
	var err error
	req.OutputDest, err = filepath.Abs(req.OutputDest)
	return err
}

func (c *command) runBuild(ctx context.Context, req admin.BuildRequest, b buildFlags) error {
	mode := b.progress
	if b.quiet {
		mode = "quiet"
	}
	p, err := c.local.BuildProgress(c.err, mode)
	if err != nil {
		return err
	}
	toStdout := req.OutputDest == "-"
	if toStdout {
		dir, err := os.MkdirTemp("", "skiff-")
		if err != nil {
			return errors.Join(err, p.Close())
		}
		defer os.RemoveAll(dir)
		req.OutputDest = filepath.Join(dir, "out")
	}
	warned := &warnings{BuildProgress: p}
	var made *admin.Image
	err = c.withImages(ctx, func(a *admin.Client) error {
		var err error
		made, err = a.Build(ctx, req, warned, c.local.Credentials)
		return err
	})
	if cerr := p.Close(); err == nil {
		err = cerr
	}
	var failed *admin.BuildError
	if errors.As(err, &failed) && failed.Excerpt != "" {
		fmt.Fprint(c.err, failed.Excerpt)
	}
	switch {
	case err != nil:
		return err
	case b.check && warned.n > 0:
		fmt.Fprintf(c.out, "Check complete, %d warnings have been found!\n", warned.n)
		return exitCode(1)
	case b.check:
		fmt.Fprintln(c.out, "Check complete, no warnings found.")
		return nil
	case toStdout:
		f, err := os.Open(req.OutputDest)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(c.out, f)
		return err
	case made == nil:
		return nil
	}
	if b.push {
		if err := c.pushBuilt(ctx, made, req.Tags, b.quiet); err != nil {
			return err
		}
	}
	if err := b.record(made, req.Tags); err != nil {
		return err
	}
	if b.quiet {
		fmt.Fprintln(c.out, made.ID)
		return nil
	}
	fmt.Fprintf(c.out, "Built %s %s (%s)\n", shortID(made.ID), strings.Join(made.Names, " "), size(made.Size))
	return nil
}

// pushBuilt pushes an image under each of its names. It then has the digest that the
// registry knows it by.
func (c *command) pushBuilt(ctx context.Context, made *admin.Image, tags []string, quiet bool) error {
	return c.withImages(ctx, func(a *admin.Client) error {
		for _, tag := range tags {
			t := transferFlags{quiet: quiet}
			if err := t.complete(ctx, c, tag); err != nil {
				return err
			}
			shown := newLayers(c.err, quiet)
			done, err := a.Push(ctx, t.req, shown.note)
			shown.close()
			if err != nil {
				return fmt.Errorf("push %s: %w", tag, err)
			}
			made.Digest = done.Digest
			if !quiet {
				fmt.Fprintf(c.err, "%s: digest: %s size: %d\n", tag, done.Digest, done.Bytes)
			}
		}
		return nil
	})
}

// record writes the files that say what was built.
func (b *buildFlags) record(made *admin.Image, tags []string) error {
	if b.iidFile != "" {
		if err := os.WriteFile(b.iidFile, []byte(made.ID), 0o644); err != nil {
			return err
		}
	}
	if b.metadataFile == "" {
		return nil
	}
	data, err := json.MarshalIndent(map[string]string{
		"containerimage.config.digest": made.ID, "containerimage.digest": made.Digest, "image.name": strings.Join(tags, ","),
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.metadataFile, append(data, '\n'), 0o644)
}

// warnings counts them.
type warnings struct {
	admin.BuildProgress
	n int
}

func (w *warnings) Warn(file string, line int, text string) {
	w.n++
	w.BuildProgress.Warn(file, line, text)
}

func (c *command) buildPrune() *cobra.Command {
	var p admin.BuildPrune
	var all bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what is unused of the build cache: results of instructions, and cache mounts",
		Long: `Remove what is unused of the build cache: results of instructions, and the
directories of RUN --mount=type=cache. Images stay. Without skiff's doing, what was
not used for 60 days goes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				p.Unused = 0
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				gone, err := a.PruneBuild(cmd.Context(), p)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.out, "Removed %d steps and %d cache mounts: %s reclaimed\n", gone.Steps, gone.Caches, size(gone.Bytes))
				return nil
			})
		},
	}
	cmd.Flags().DurationVar(&p.Unused, "unused-for", 48*time.Hour, "what was not used for that long")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "everything")
	return cmd
}
