package kubelet

import "context"

type Authorizer func() error

func (k *Kubelet) housekeep(ctx context.Context) error { <-ctx.Done(); return nil }
