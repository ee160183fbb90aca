// Command skiff is Kubernetes in one program.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"skiff/internal/app"
	"skiff/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Execute(ctx, app.Local{}, os.Args[1:])
	stop()
	os.Exit(code)
}
