package cli

import (
	"encoding/json"
	"fmt"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"skiff/internal/api/runpod"
	"skiff/internal/run"
)

func (c *command) stats() *cobra.Command {
	var ns string
	var noStream bool
	cmd := &cobra.Command{
		Use: "stats [CONTAINER...]", Short: "Print how much CPU and memory containers use", Args: cobra.ArbitraryArgs,
		Long: `Print how much CPU and memory containers of skiff run use, once: the figures of
metrics.k8s.io, which kubectl top shows, too.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), ns, func(p *pods) error {
				want := map[string]bool{}
				for _, word := range args {
					pod, _, err := p.find(cmd.Context(), word)
					if err != nil {
						return err
					}
					want[pod.Namespace+"/"+pod.Name] = true
				}
				q := url.Values{}
				if len(args) == 0 {
					q.Set("labelSelector", runpod.LabelName)
				}
				b, err := p.http.Raw(cmd.Context(), "/apis/metrics.k8s.io/v1beta1/pods", q, "application/json")
				if err != nil {
					return err
				}
				var list metricsv1.PodMetricsList
				if err := json.Unmarshal(b, &list); err != nil {
					return fmt.Errorf("read the figures: %w", err)
				}
				w := tabwriter.NewWriter(c.out, 0, 8, 3, ' ', 0)
				fmt.Fprintln(w, "NAME\tCPU\tMEMORY")
				for _, m := range list.Items {
					if len(want) > 0 && !want[m.Namespace+"/"+m.Name] {
						continue
					}
					var cpu, memory resource.Quantity
					for _, x := range m.Containers {
						cpu.Add(x.Usage[corev1.ResourceCPU])
						memory.Add(x.Usage[corev1.ResourceMemory])
					}
					fmt.Fprintf(w, "%s\t%.2f%%\t%s\n", m.Name, float64(cpu.ScaledValue(resource.Micro))/1e4, run.Size(memory))
				}
				return w.Flush()
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().BoolVar(&noStream, "no-stream", true, "as docker's: figures are printed once")
	return cmd
}
