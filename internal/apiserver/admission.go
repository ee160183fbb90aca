package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api/resource"
)

// Operation is what a write does.
type Operation string

// Operations, as admission webhooks name them.
const (
	OpCreate  Operation = "CREATE"
	OpUpdate  Operation = "UPDATE"
	OpDelete  Operation = "DELETE"
	OpConnect Operation = "CONNECT"
)

// Attributes are a write as admission sees it.
type Attributes struct {
	Operation       Operation
	Resource        *resource.Resource
	Subresource     string
	Namespace, Name string
	// Object is the new object; a mutating plugin may change it. Nil on delete.
	Object Object
	// Old is the current object; shared, nil on create.
	Old     Object
	Options runtime.Object
	User    resource.User
	DryRun  bool
	Env     resource.Env
	// Warn adds a text to the Warning header.
	Warn func(string)
}

// Admission is one admission plugin. Errors are API errors (403 usually).
type Admission interface {
	Name() string
	// Admit may change a.Object. Plugins are called in order.
	Admit(ctx context.Context, a *Attributes) error
	// Validate may refuse; it changes nothing.
	Validate(ctx context.Context, a *Attributes) error
}

func (s *Server) admit(ctx context.Context, a *Attributes) error {
	for _, p := range s.Admission {
		if err := p.Admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) validateAdmission(ctx context.Context, a *Attributes) error {
	for _, p := range s.Admission {
		if err := p.Validate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}
