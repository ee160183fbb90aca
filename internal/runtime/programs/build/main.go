// Command build compiles skiff-pod and skiff-start and puts them, compressed,
// where package programs embeds them. Run it in the module's root.
package main

import (
	"fmt"
	"os"

	"skiff/internal/runtime/programs/compile"
)

func main() {
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func build() error {
	dir, err := os.MkdirTemp("", "skiff-programs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := compile.Build(".", dir); err != nil {
		return err
	}
	return compile.Pack(dir, "internal/runtime/programs/bin")
}
