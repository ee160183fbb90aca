package etcd

import (
	"errors"
	"testing"

	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
)

// TestOverElection: a start that meets its own election is no damage.
func TestOverElection(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct {
		answers []error
		want    error
	}{
		{[]error{nil}, nil},
		{[]error{etcderrors.ErrLeaderChanged, etcderrors.ErrLeaderChanged, nil}, nil},
		{[]error{etcderrors.ErrLeaderChanged, other}, other},
		{[]error{other, nil}, other},
	} {
		reads := 0
		err := overElection(func() error { reads++; return c.answers[reads-1] })
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%v: %v, want %v", c.answers, err, c.want)
		}
	}
}
