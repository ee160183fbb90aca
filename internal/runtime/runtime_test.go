package runtime_test

import (
	"testing"
	"time"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

func TestContractInProcess(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	critest.Test(t, b.fixture(cri.InProcess(r)))
}

func TestContractSocket(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s, err := cri.Dial(t.Context(), "unix://"+r.Socket, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	critest.Test(t, b.fixture(s))
}
