// Package controller has the controllers, one file each. Each declares what it
// watches and writes (see package control) and keeps its decisions in functions of
// a snapshot; All lists them.
package controller

import (
	"skiff/internal/control"
)

// Deps is what controllers are made from.
type Deps struct {
	control.Deps
}

// All returns every controller, to be run by control.Run.
func All(d Deps) []*control.Controller {
	return []*control.Controller{
		newDeployment(d),
		newReplicaSet(d),
	}
}
