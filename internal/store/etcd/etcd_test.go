package etcd

import (
	"errors"
	"os"
	"testing"

	"go.uber.org/goleak"

	"skiff/internal/store"
	"skiff/internal/store/storetest"
)

func TestMain(m *testing.M) {
	if child() {
		return
	}
	if os.Getenv(faultEnv) != "" {
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, c Config) *Store {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestContractEmbedded(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		New:      func(t *testing.T) store.Store { return open(t, Config{}) },
		MaxValue: defaultMaxRequestBytes,
	})
}

func isUnknown(err error) bool { return errors.Is(err, store.ErrUnknown) }
