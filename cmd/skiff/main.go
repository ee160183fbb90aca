// Command skiff is Kubernetes in one program.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"skiff/internal/app"
	"skiff/internal/cli"
	"skiff/internal/runtime/build"
)

func main() {
	build.Helper() // a build's RUN starts this program again, inside its namespaces
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Execute(ctx, app.Local{}, os.Args[1:])
	stop()
	os.Exit(code)
}
