package pki

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestList(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}
	ensure(t, dir, serverSpec(t), c)
	all, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]Certificate{}
	for _, one := range all {
		by[one.Name] = one
	}
	crt := 0
	for name := range files(t, dir) {
		if strings.HasSuffix(name, ".crt") {
			crt++
		}
	}
	if len(by) != crt || len(all) != crt {
		t.Errorf("%d of %d certificates", len(all), crt)
	}
	if ca := by[ClusterCA]; all[0].Name != ClusterCA || ca.CA != ClusterCA || !slices.Equal(ca.Uses, []string{"authority"}) || !ca.Renews.IsZero() ||
		!ca.NotAfter.Equal(c.t.Add(caLife)) {
		t.Errorf("authority: %+v", ca)
	}
	if api := by["apiserver"]; api.CA != ClusterCA || api.Owner != "kube-apiserver" || !slices.Equal(api.Uses, []string{"server"}) ||
		!slices.Contains(api.Names, "127.0.0.1") || !slices.Contains(api.Names, "kubernetes") || !api.Renews.Before(api.NotAfter.Add(-leafLife/3+time.Hour)) {
		t.Errorf("server: %+v", api)
	}
	if admin := by["admin"]; admin.Owner != AdminUser || !slices.Equal(admin.Groups, []string{AdminGroup}) || !slices.Equal(admin.Uses, []string{"client"}) {
		t.Errorf("client: %+v", admin)
	}
	if fp := by["front-proxy-client"]; fp.CA != FrontProxyCA {
		t.Errorf("of the aggregation layer: %+v", fp)
	}
	overwrite(t, dir, "admin.crt", []byte("no certificate"))
	if _, err := List(dir); err == nil || !strings.Contains(err.Error(), "admin.crt") {
		t.Errorf("damaged: %v", err)
	}
}

func TestReissue(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	p := ensure(t, dir, serverSpec(t), c)
	before := files(t, dir)
	issued, err := p.Reissue(t.Context(), "apiserver", "admin")
	if err != nil || !slices.Equal(issued, []string{"admin", "apiserver"}) {
		t.Fatalf("issued %q, %v", issued, err)
	}
	if got := changed(before, files(t, dir)); !slices.Equal(got, []string{"admin.crt", "admin.key", "apiserver.crt", "apiserver.key"}) {
		t.Errorf("changed: %q", got)
	}
	before = files(t, dir)
	if _, err := p.Reissue(t.Context(), "admin", "nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := p.Reissue(t.Context(), ClusterCA); !errors.Is(err, os.ErrInvalid) || !strings.Contains(err.Error(), "authority") {
		t.Errorf("authority: %v", err)
	}
	if got := changed(before, files(t, dir)); len(got) > 0 {
		t.Errorf("a refusal changed %q", got)
	}
	if issued, err = p.Reissue(t.Context()); err != nil || len(issued) != len(serverSpec(t).Leaves) {
		t.Errorf("all: %q, %v", issued, err)
	}
}

// A connection goes on over the renewal of both sides' certificates, and over the
// end of those that it began with; the next one has the new ones.
func TestRenewKeepsConnections(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	p := ensure(t, dir, serverSpec(t), c)
	server := p.Pair("apiserver").ServerTLS(p.Pool(ClusterCA))
	client := p.Pair("admin").ClientTLS(p.Pool(ClusterCA), "kubernetes")
	server.Time, client.Time = c.now, c.now
	server.ClientAuth = tls.RequireAndVerifyClientCert
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tl := tls.NewListener(l, server)
	ended := make(chan struct{})
	go func() { // echoes lines
		defer close(ended)
		for {
			conn, err := tl.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for s := bufio.NewScanner(conn); s.Scan(); {
					fmt.Fprintln(conn, s.Text())
				}
			}()
		}
	}()
	defer func() { l.Close(); <-ended }()
	open := func() *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", l.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	ask := func(conn *tls.Conn, line string) {
		t.Helper()
		fmt.Fprintln(conn, line)
		if got, err := bufio.NewReader(conn).ReadString('\n'); got != line+"\n" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	serves := func(conn *tls.Conn) *x509.Certificate { return conn.ConnectionState().PeerCertificates[0] }
	first := open()
	defer first.Close()
	ask(first, "before")
	c.t = c.t.Add(leafLife * 3 / 4)
	if issued, err := p.Renew(t.Context()); err != nil || len(issued) != len(serverSpec(t).Leaves) {
		t.Fatalf("renewed %q, %v", issued, err)
	}
	ask(first, "after the renewal")
	second := open()
	defer second.Close()
	ask(second, "new")
	if serves(first).Equal(serves(second)) {
		t.Error("the new connection has the old certificate")
	}
	c.t = c.t.Add(leafLife / 2) // the first ones have ended
	if !c.t.After(serves(first).NotAfter) || !c.t.Before(serves(second).NotAfter) {
		t.Fatal("the clock is wrong")
	}
	ask(first, "after its end")
	third := open()
	defer third.Close()
	ask(third, "newer")
}

// lockedBuffer may be read while others write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Ten years of a cluster that is never started anew: no certificate ever ends before
// its authority does, and of that there is a warning for a year.
func TestRunForYears(t *testing.T) {
	dir := t.TempDir()
	spec := serverSpec(t)
	spec.Leaves = spec.Leaves[:1]
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		p, err := Ensure(t.Context(), dir, spec, Deps{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if err != nil {
			t.Fatal(err)
		}
		begin, ends, done := time.Now(), p.CA(ClusterCA).NotAfter(), make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- p.Run(ctx, nil) }()
		const week = 7 * 24 * time.Hour
		for time.Until(ends) > week {
			time.Sleep(week)
			synctest.Wait()
			leaf := p.Pair("apiserver").Certificate().Leaf
			if left := time.Until(leaf.NotAfter); left < leafLife/3-week && leaf.NotAfter.Before(ends) || left <= 0 {
				t.Fatalf("after %v the certificate has %v left", time.Since(begin), left)
			}
			left, warned := time.Until(ends), strings.Contains(log.String(), "authority=ca")
			if warned && left > warnBefore || !warned && left < warnBefore-week {
				t.Fatalf("with %v left of the authority, warned: %v", left, warned)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
