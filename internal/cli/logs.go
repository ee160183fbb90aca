package cli

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

func (c *command) logs() *cobra.Command {
	var own serverLog
	var ns string
	var stamps, previous bool
	cmd := &cobra.Command{
		Use: "logs [CONTAINER]", Short: "Show the log of a container, or skiff's own", Args: cobra.MaximumNArgs(1),
		Long: `Show what a container has written; without one, the log of skiff itself. The log of
any pod is NAMESPACE/POD[/CONTAINER].`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.serverLog(cmd.Context(), own)
			}
			if own.Level != "" {
				return fmt.Errorf("--level: only skiff's own log has levels")
			}
			q := url.Values{}
			for name, on := range map[string]bool{"follow": own.Follow, "timestamps": stamps, "previous": previous} {
				if on {
					q.Set(name, "true")
				}
			}
			if own.Tail >= 0 {
				q.Set("tailLines", fmt.Sprint(own.Tail))
			}
			if own.Since != "" {
				at, err := moment(own.Since, time.Now())
				if err != nil {
					return fmt.Errorf("--since %w", err)
				}
				q.Set("sinceTime", at.UTC().Format(time.RFC3339Nano))
			}
			return c.with(cmd.Context(), ns, func(p *pods) error {
				pod, container, err := p.find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if container != "" {
					q.Set("container", container)
				}
				body, err := p.http.Follow(cmd.Context(), podPath(pod)+"/log", q)
				if err != nil {
					return err
				}
				defer body.Close()
				if _, err = io.Copy(c.out, body); err != nil && cmd.Context().Err() != nil {
					return nil // ^C ends what is followed
				}
				return err
			})
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	f := cmd.Flags()
	own.flags(f)
	namespaceFlag(cmd, &ns)
	f.BoolVarP(&stamps, "timestamps", "t", false, "of a container: with the time of each line")
	f.BoolVar(&previous, "previous", false, "of a container: of the run before the last restart")
	return cmd
}
