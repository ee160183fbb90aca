package app

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"skiff/internal/pki"
	"skiff/internal/store"
	"skiff/internal/store/etcdtest"
)

// TestExternalEtcd keeps what a server writes in an etcd elsewhere, reached with
// certificates: what one server wrote the next one finds, and no etcd is embedded.
func TestExternalEtcd(t *testing.T) {
	dir := t.TempDir()
	spec, err := pki.ServerSpec(pki.Server{NodeName: "etcd", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Etcd: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Ensure(t.Context(), dir, spec, pki.Deps{}); err != nil {
		t.Fatal(err)
	}
	at := etcdtest.Serve(t, &etcdtest.TLS{Cert: dir + "/etcd/server.crt", Key: dir + "/etcd/server.key", CA: dir + "/etcd/ca.crt"})
	set, err := Config{
		Name: "etcd-test", DataDir: t.TempDir(), NodeName: "n", NodeIP: "192.0.2.1", APIPort: 1, KubeletPort: 2, Etcd: []string{at},
		EtcdCA: dir + "/etcd/ca.crt", EtcdCert: dir + "/apiserver-etcd-client.crt", EtcdKey: dir + "/apiserver-etcd-client.key",
	}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	open := func(set *Settings) (*server, *group, error) {
		log := slog.New(slog.DiscardHandler)
		g := newGroup(log)
		s := &server{set: set, log: log, g: g}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return s, g, s.openStore(ctx)
	}
	first, g, err := open(set)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := first.store.Create(t.Context(), "/registry/test", []byte("word"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g.stop()
	second, g, err := open(set)
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop()
	kv, err := second.store.Get(t.Context(), "/registry/test", 0)
	if err != nil || string(kv.Value) != "word" || kv.ModRev != rev {
		t.Errorf("read %+v, %v; want what was written at %d", kv, err, rev)
	}
	if _, err := os.Stat(set.Instance.Data("etcd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an etcd was embedded: %v", err)
	}
	bare := *set
	bare.EtcdCert, bare.EtcdKey = "", ""
	if _, g, err := open(&bare); err == nil {
		g.stop()
		t.Error("etcd let a server in that has no certificate")
	}
}

func TestEtcdSettings(t *testing.T) {
	for name, c := range map[string]struct {
		c     Config
		field string
	}{
		"no URL":            {Config{Etcd: []string{"10.0.0.5"}}, "etcd"},
		"key without etcd":  {Config{EtcdCert: "c", EtcdKey: "k"}, "etcdCert"},
		"certificate alone": {Config{Etcd: []string{"https://h:1"}, EtcdCert: "c"}, "etcdKey"},
	} {
		var bad *ConfigError
		if err := c.c.checkEtcd(); !errors.As(err, &bad) || bad.Field != c.field {
			t.Errorf("%s: %v, want an error of %s", name, err, c.field)
		}
	}
}
