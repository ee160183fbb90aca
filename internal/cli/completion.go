package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/host"
	"skiff/internal/run"
)

// completionTime bounds how long a shell waits for words.
const completionTime = 2 * time.Second

type completer = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// completeContainers offers the names of containers; running those alone that run.
func (c *command) completeContainers(running bool) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if takesOne(cmd) && len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		p, err := c.cluster(ctx, "")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer p.close()
		list, _, err := p.in("").List(ctx, metav1.ListOptions{LabelSelector: runpod.LabelName})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, r := range run.Rows(list, !running, time.Now()) {
			if strings.HasPrefix(r.Names, begun) && !slices.Contains(args, r.Names) {
				out = append(out, r.Names+"\t"+r.Image+", "+r.Status)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// takesOne tells of commands whose first argument is a container and no further one.
func takesOne(cmd *cobra.Command) bool {
	return slices.Contains([]string{"exec", "attach", "logs", "port", "top"}, cmd.Name())
}

// completeImages offers the images of this machine.
func (c *command) completeImages(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() == "run" {
		return nil, cobra.ShellCompDirectiveDefault // the command's own words
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	a, _, _, err := c.find()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := a.Images(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, i := range all {
		for _, n := range i.Names {
			if strings.HasPrefix(n, begun) && !strings.Contains(n, "@") && !slices.Contains(args, n) {
				out = append(out, n)
			} else if short := strings.TrimPrefix(strings.TrimPrefix(n, "docker.io/"), "library/"); short != n && strings.HasPrefix(short, begun) && !strings.Contains(n, "@") {
				out = append(out, short)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeClusters offers the clusters of this machine.
func (c *command) completeClusters(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, n := range sortedKeys(host.Index{Dir: host.StateDir}.All()) {
		if strings.HasPrefix(n, begun) {
			out = append(out, n)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completions has words for what takes no container: the clusters, and the images.
func (c *command) completions(root *cobra.Command) {
	_ = root.RegisterFlagCompletionFunc("name", c.completeClusters)
	for _, cmd := range root.Commands() {
		if cmd.Name() != "image" {
			continue
		}
		for _, sub := range cmd.Commands() {
			if slices.Contains([]string{"rm", "export", "tag", "push", "inspect", "history"}, sub.Name()) && sub.ValidArgsFunction == nil {
				sub.ValidArgsFunction = c.completeImages
			}
		}
	}
}
