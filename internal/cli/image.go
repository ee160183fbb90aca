package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func (c *command) build() *cobra.Command {
	return &cobra.Command{Use: "build", Short: "Build an image from a Dockerfile", RunE: func(*cobra.Command, []string) error {
		return errors.New("not wired yet")
	}, Hidden: true}
}

func (c *command) image() *cobra.Command {
	return &cobra.Command{Use: "image", Short: "Images on this machine", RunE: func(*cobra.Command, []string) error {
		return errors.New("not wired yet")
	}, Hidden: true}
}
