package etcd

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"skiff/internal/store"
	"skiff/internal/store/storetest"
)

// serve starts an etcd with a listener at client, as etcd's own program would.
func serve(t *testing.T, client string, change func(*embed.Config)) (e *embed.Etcd, stop func()) {
	t.Helper()
	at := func(s string) []url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []url.URL{*u}
	}
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	c.ListenClientUrls, c.AdvertiseClientUrls = at(client), at(client)
	c.ListenPeerUrls = at("unix://" + t.TempDir() + "/peer")
	c.AdvertisePeerUrls = c.ListenPeerUrls
	c.InitialCluster = c.Name + "=" + c.ListenPeerUrls[0].String()
	c.TickMs, c.ElectionMs = 20, 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	if change != nil {
		change(c)
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready")
	}
	return e, stop
}

func dial(t *testing.T, c DialConfig) *Store {
	t.Helper()
	s, err := Dial(t.Context(), c)
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

func TestContractExternal(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		New: func(t *testing.T) store.Store {
			at := "unix://" + t.TempDir() + "/client"
			serve(t, at, nil)
			return dial(t, DialConfig{Endpoints: []string{at}})
		},
		MaxValue: defaultMaxRequestBytes,
	})
}

func TestDialTLS(t *testing.T) {
	info, err := transport.SelfCert(zap.NewNop(), t.TempDir(), []string{"127.0.0.1:0"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := serve(t, "https://127.0.0.1:0", func(c *embed.Config) { c.ClientTLSInfo = info })
	trusting := transport.TLSInfo{TrustedCAFile: info.CertFile}
	tls, err := trusting.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	at := "https://" + e.Clients[0].Addr().String()
	s := dial(t, DialConfig{Endpoints: []string{at}, TLS: tls})
	if _, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestDialNobody(t *testing.T) {
	at := "unix://" + t.TempDir() + "/nobody"
	_, err := Dial(t.Context(), DialConfig{Endpoints: []string{at}, DialTimeout: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), at) {
		t.Fatalf("got error %v", err)
	}
	if _, err := Dial(t.Context(), DialConfig{}); err == nil {
		t.Fatal("no endpoint is taken")
	}
}

// TestDialServerEnds: writes to an etcd that is gone have an unknown outcome, at
// the latest when the context ends.
func TestDialServerEnds(t *testing.T) {
	at := "unix://" + t.TempDir() + "/client"
	_, stop := serve(t, at, nil)
	s := dial(t, DialConfig{Endpoints: []string{at}})
	if _, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := s.Create(ctx, "/b", []byte("v"), store.WriteOptions{})
	if !isUnknown(err) {
		t.Fatalf("got error %v", err)
	}
}

// TestDialServerRestarts: a watch goes on where it was, and calls work again.
func TestDialServerRestarts(t *testing.T) {
	at, dir := "unix://"+t.TempDir()+"/client", t.TempDir()
	here := func(c *embed.Config) { c.Dir = dir }
	_, stop := serve(t, at, here)
	s := dial(t, DialConfig{Endpoints: []string{at}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w, err := s.Watch(ctx, "/registry/", 0)
	if err != nil {
		t.Fatal(err)
	}
	next := func(want int64) {
		t.Helper()
		b, ok := <-w.Batches()
		if !ok || len(b.Events) != 1 || b.Events[0].KV.ModRev != want {
			t.Fatalf("got %+v, open=%t, %v; want the change of %d", b, ok, w.Err(), want)
		}
	}
	r1, err := s.Create(ctx, "/registry/a", []byte("v"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next(r1)
	stop()
	serve(t, at, here)
	var r2 int64
	for {
		if r2, err = s.Update(ctx, "/registry/a", []byte("w"), r1, store.WriteOptions{}); err == nil {
			break
		}
		// The first try after the connection broke has an unknown outcome, perhaps.
		var done *store.ConflictError
		if errors.As(err, &done) {
			r2 = done.Current.ModRev
			break
		}
		if !isUnknown(err) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	next(r2)
}
