package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"skiff/internal/admin"
)

// transferFlags are those of pull and push.
type transferFlags struct {
	req   admin.TransferRequest
	creds string
	quiet bool
}

func (t *transferFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&t.quiet, "quiet", "q", false, "print the image's name alone")
	f.StringVar(&t.creds, "creds", "", "USERNAME[:PASSWORD] for the registry, in place of those that skiff image login or docker login kept; without a password it is asked for")
	f.BoolVar(&t.req.Insecure, "insecure", false, "do not verify the registry's certificate, and take one without TLS")
}

// complete finds the credentials.
func (t *transferFlags) complete(ctx context.Context, c *command, ref string) error {
	t.req.Ref = ref
	if t.creds == "" {
		a, err := c.local.Credentials(ctx, ref)
		t.req.Auth = a
		return err
	}
	user, password, ok := strings.Cut(t.creds, ":")
	if user == "" {
		return errors.New("--creds: must be USERNAME[:PASSWORD]")
	}
	if !ok {
		var err error
		if password, err = c.askPassword(); err != nil {
			return err
		}
	}
	t.req.Auth = &admin.Auth{Username: user, Password: password}
	return nil
}

// askPassword reads a password from the terminal, unseen.
func (c *command) askPassword() (string, error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", errors.New("no password, and no terminal to ask for it")
	}
	fmt.Fprint(c.err, "Password: ")
	b, err := term.ReadPassword(fd)
	fmt.Fprintln(c.err)
	if err == nil && len(b) == 0 {
		err = errors.New("no password was given")
	}
	return string(b), err
}

// run does a transfer with its progress shown.
func (t *transferFlags) run(ctx context.Context, c *command, do func(context.Context, admin.TransferRequest, func(admin.LayerEvent)) (*admin.Transfer, error)) (*admin.Transfer, error) {
	p := newLayers(c.out, t.quiet)
	done, err := do(ctx, t.req, p.note)
	p.close()
	return done, err
}

// repository is a canonical name without its tag or digest, and what was cut off.
func repository(name string) (repo, rest string) {
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		return name[:i], name[i+1:]
	}
	i := strings.LastIndexByte(name, ':')
	return name[:i], name[i+1:]
}

func (c *command) imagePull() *cobra.Command {
	var t transferFlags
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image from its registry", Args: cobra.ExactArgs(1),
		Example: "  skiff image pull nginx\n  skiff image pull --platform linux/arm64 registry.example.com/team/app:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.complete(cmd.Context(), c, args[0]); err != nil {
				return err
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				done, err := t.run(cmd.Context(), c, a.Pull)
				if err != nil {
					return err
				}
				if !t.quiet {
					status := "Image is up to date for"
					if done.Newer {
						status = "Downloaded newer image for"
					}
					fmt.Fprintf(c.out, "Digest: %s\nStatus: %s %s\n", done.Digest, status, args[0])
				}
				fmt.Fprintln(c.out, done.Name)
				return nil
			})
		},
	}
	t.add(cmd)
	cmd.Flags().StringVar(&t.req.Platform, "platform", "", "of an image for several: OS/ARCHITECTURE[/VARIANT] (default: this machine's)")
	return cmd
}

func (c *command) imagePush() *cobra.Command {
	var t transferFlags
	cmd := &cobra.Command{
		Use: "push IMAGE", Short: "Push an image to the registry that its name says", Args: cobra.ExactArgs(1),
		Long: `Push an image to the registry that its name says. Layers that the registry has
are not sent; those that another repository there has are mounted from it.

Layers without compression are compressed first. The image then has the digest
here that it has in the registry.`,
		Example: "  skiff image tag web:1 registry.example.com/team/web:1\n  skiff image push registry.example.com/team/web:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.complete(cmd.Context(), c, args[0]); err != nil {
				return err
			}
			return c.withImages(cmd.Context(), func(a *admin.Client) error {
				done, err := t.run(cmd.Context(), c, a.Push)
				if err != nil {
					return err
				}
				_, tag := repository(done.Name)
				if t.quiet {
					fmt.Fprintln(c.out, done.Name)
					return nil
				}
				fmt.Fprintf(c.out, "%s: digest: %s size: %d\n", tag, done.Digest, done.Bytes)
				return nil
			})
		},
	}
	t.add(cmd)
	cmd.Flags().StringVar(&t.req.Compression, "compression", "", "of layers that have none: gzip, zstd or none (default gzip)")
	return cmd
}

func (c *command) imageLogin() *cobra.Command {
	var a admin.Auth
	var fromStdin, insecure bool
	cmd := &cobra.Command{
		Use: "login [REGISTRY]", Short: "Keep credentials of a registry, where docker keeps them", Args: cobra.MaximumNArgs(1),
		Long: `Verify credentials with a registry (docker.io by default) and keep them where
docker does: in ~/.docker/config.json ($DOCKER_CONFIG), or with the credential
helper that is named there. Who has logged in with docker is logged in here.`,
		Example: "  skiff image login -u me registry.example.com\n  skiff image login -u me --password-stdin registry.example.com <token",
		RunE: func(cmd *cobra.Command, args []string) error {
			registry := ""
			if len(args) == 1 {
				registry = args[0]
			}
			if fromStdin && a.Password != "" {
				return errors.New("--password and --password-stdin are mutually exclusive")
			}
			if fromStdin && a.Username == "" {
				return errors.New("--password-stdin needs --username")
			}
			if fromStdin {
				b, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
				if err != nil {
					return err
				}
				a.Password = strings.TrimRight(string(b), "\r\n")
			}
			if a.Username == "" {
				if !term.IsTerminal(int(os.Stdin.Fd())) {
					return errors.New("--username is needed where there is no terminal to ask on")
				}
				fmt.Fprint(c.err, "Username: ")
				line, err := bufio.NewReader(os.Stdin).ReadString('\n')
				if err != nil {
					return err
				}
				a.Username = strings.TrimSpace(line)
			}
			if a.Password == "" {
				var err error
				if a.Password, err = c.askPassword(); err != nil {
					return err
				}
			}
			_, i, _, err := c.find()
			if err != nil {
				return err
			}
			where, err := c.local.Login(cmd.Context(), i, registry, a, insecure)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "Login Succeeded. The credentials are in %s.\n", where)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&a.Username, "username", "u", "", "user of the registry")
	f.StringVarP(&a.Password, "password", "p", "", "password or token; --password-stdin keeps it out of the list of processes")
	f.BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&insecure, "insecure", false, "do not verify the registry's certificate, and take one without TLS")
	return cmd
}

func (c *command) imageLogout() *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget credentials of a registry", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			registry, shown := "", "docker.io"
			if len(args) == 1 {
				registry, shown = args[0], args[0]
			}
			had, err := c.local.Logout(registry)
			if err != nil {
				return err
			}
			if !had {
				fmt.Fprintf(c.out, "Not logged in to %s\n", shown)
				return nil
			}
			fmt.Fprintf(c.out, "Removing login credentials for %s\n", shown)
			return nil
		},
	}
}
