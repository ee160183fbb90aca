package cli

import "github.com/spf13/cobra"

func (c *command) logs() *cobra.Command {
	var own serverLog
	cmd := &cobra.Command{
		Use: "logs", Short: "Show skiff's own log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.serverLog(cmd.Context(), own) },
	}
	own.flags(cmd.Flags())
	return cmd
}
