//go:build tools

package main

// This file is never built: what is generated from, and with, stands in go.mod
// through these.
import (
	_ "k8s.io/api/resource/v1"
	_ "k8s.io/code-generator/cmd/validation-gen"
)
