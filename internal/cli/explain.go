package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"skiff/internal/api/explanation"
	"skiff/internal/client"
	"skiff/internal/explain"
)

func (c *command) explain() *cobra.Command {
	var namespace, output, kubeconfig string
	var everywhere bool
	cmd := &cobra.Command{
		Use: "explain [KIND/NAME]", Short: "Tell why something does not run, and what would help", Args: cobra.MaximumNArgs(2),
		Long: `Tell why an object is not as it should be, and the smallest changes that would
help: for a pod that no node takes, changes after which the scheduler would place
it. Without an object, tell in a line each what is not well in the namespace.

  skiff explain pod/web-0 -n shop
  skiff explain deployment/web
  skiff explain pvc/data -o yaml
  skiff explain -A

It explains pods, deployments, replicasets, statefulsets, daemonsets, jobs,
persistentvolumeclaims, services, namespaces and horizontalpodautoscalers, of any
cluster: with --kubeconfig, of one that skiff does not run. Only what the user of
the kubeconfig may read is told.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" && output != "yaml" {
				return fmt.Errorf("--output %s: it must be json or yaml", output)
			}
			h, err := c.apiServer(kubeconfig)
			if err != nil {
				return err
			}
			defer h.Close()
			r := explain.Remote(h)
			if len(args) == 0 {
				if everywhere {
					namespace = ""
				}
				return c.explainAll(cmd.Context(), r, namespace, output)
			}
			k, name, err := subject(args)
			if err != nil {
				return err
			}
			if !k.Namespaced {
				namespace = ""
			}
			e, err := explainOne(cmd.Context(), h, r, k, namespace, name)
			if err != nil {
				return err
			}
			if output != "" {
				return c.structured(e, output)
			}
			return explain.Text(c.out, e, c.style())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&namespace, "namespace", "n", "default", "namespace of the object")
	f.BoolVarP(&everywhere, "all-namespaces", "A", false, "without an object: what is not well in all namespaces")
	f.StringVarP(&output, "output", "o", "", "json or yaml, for programs")
	f.StringVar(&kubeconfig, "kubeconfig", "", "cluster to ask (default: the one on this machine, then $KUBECONFIG)")
	return cmd
}

// apiServer is the way to the API server that is meant.
func (c *command) apiServer(kubeconfig string) (*client.HTTPS, error) {
	if kubeconfig == "" {
		_, i, known, err := c.find()
		switch {
		case err != nil:
			return nil, err
		case known:
			_, r, err := c.instance()
			if err != nil {
				return nil, err
			}
			kubeconfig = r.Kubeconfig
		case os.Getenv("KUBECONFIG") != "":
			kubeconfig = os.Getenv("KUBECONFIG")
		default:
			return nil, errors.New(c.local.Unknown(i))
		}
	}
	cfg, err := client.LoadKubeconfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = "skiff"
	return client.NewHTTPS(cfg)
}

// subject reads KIND/NAME, or KIND NAME.
func subject(args []string) (explain.Kind, string, error) {
	kind, name, ok := strings.Cut(args[0], "/")
	if len(args) == 2 && !ok {
		name, ok = args[1], true
	} else if len(args) == 2 {
		return explain.Kind{}, "", errors.New("explain one object at a time")
	}
	if !ok || name == "" {
		return explain.Kind{}, "", fmt.Errorf("%q is not KIND/NAME, such as pod/web", args[0])
	}
	k, known := explain.KindOf(kind)
	if !known {
		var names []string
		for _, k := range explain.Kinds() {
			names = append(names, strings.ToLower(k.Kind))
		}
		return k, "", fmt.Errorf("%q cannot be explained; these can: %s", kind, strings.Join(names, ", "))
	}
	return k, name, nil
}

// explainOne asks the server, which has all that is needed in memory; one that is not
// skiff is read from.
func explainOne(ctx context.Context, h *client.HTTPS, r explain.Reader, k explain.Kind, namespace, name string) (*explanation.Explanation, error) {
	root := "/apis/" + explanation.GroupVersion.String()
	if _, err := h.Raw(ctx, root, nil, "application/json"); err != nil {
		if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return nil, err
		}
		return r.Explain(ctx, k, namespace, name)
	}
	if namespace != "" {
		root += "/namespaces/" + namespace
	}
	b, err := h.Raw(ctx, root+"/"+k.GVR.Resource+"/"+name, nil, "application/json")
	if err != nil {
		return nil, err
	}
	e := &explanation.Explanation{}
	if err := json.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("read the explanation: %w", err)
	}
	return e, nil
}

// explainAll tells what is not well: workloads, and the pods that none of them has.
func (c *command) explainAll(ctx context.Context, r explain.Reader, namespace, output string) error {
	found := &explanation.List{}
	found.APIVersion, found.Kind = explanation.GroupVersion.String(), "ExplanationList"
	blamed := map[explanation.Reference]bool{}
	for _, k := range explain.Overview() {
		list, err := r.Unwell(ctx, k, namespace)
		if err != nil {
			if apierrors.IsNotFound(err) {
				continue // a server without that kind
			}
			return err
		}
		for _, e := range list {
			if blamed[e.Regarding] {
				continue
			}
			for _, b := range e.Because {
				blamed[b.Regarding] = true
			}
			found.Items = append(found.Items, *e)
		}
	}
	if output != "" {
		return c.structured(found, output)
	}
	if len(found.Items) == 0 {
		fmt.Fprintln(c.out, "All is well.")
		return nil
	}
	return explain.Overviewed(c.out, found.Items, namespace == "", c.style())
}

func (c *command) structured(o any, as string) error {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	if as == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(c.out, strings.TrimSuffix(string(b), "\n"))
	return err
}

// style is colour and width on a terminal, neither elsewhere.
func (c *command) style() explain.Style {
	f, ok := c.out.(*os.File)
	if !ok {
		return explain.Style{Width: 100}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return explain.Style{Width: 100}
	}
	return explain.Style{Color: os.Getenv("NO_COLOR") == "", Width: min(max(int(size.Col), 60), 120)}
}
