// Package etcdtest runs an etcd as its own program would, for tests of what talks
// to one from outside.
package etcdtest

import (
	"net/url"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// TLS are the files of a server that asks its clients for certificates.
type TLS struct{ Cert, Key, CA string }

// Serve runs an etcd on a port of loopback until the test ends, and returns its
// client URL. Without files it speaks plain HTTP.
func Serve(t *testing.T, files *TLS) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	client := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	if files != nil {
		client.Scheme = "https"
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = files.Cert, files.Key
		c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = files.CA, true
	}
	peer := url.URL{Scheme: "unix", Path: t.TempDir() + "/peer"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	c.TickMs, c.ElectionMs = 20, 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd is not ready")
	}
	client.Host = e.Clients[0].Addr().String()
	return client.String()
}
