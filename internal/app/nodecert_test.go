package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skiff/internal/host"
	"skiff/internal/pki"
)

// A node's kubeconfig that is replaced is taken up; one that is another node's, or
// half written, is not.
func TestNodeCertificateReplaced(t *testing.T) {
	i, err := host.New("nodecert", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Name: i.Name, DataDir: i.DataDir, NodeName: "server", NodeIP: "192.0.2.1", APIPort: 6999}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Ensure(context.Background(), i.Data("pki"), pki.Spec{CAs: []string{pki.ClusterCA}}, pki.Deps{}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	replace := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(file+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	of := func(node string) []byte {
		t.Helper()
		b, err := NodeKubeconfig(i, node, "")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	replace(of("edge"))
	var log strings.Builder
	j, err := openJoin(file, "edge", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	now := time.Now()
	j.own.now = func() time.Time { return now }
	serves := func() string {
		t.Helper()
		pair, err := j.serving.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(pair.Certificate[0])
	}
	first := serves()
	replace(of("edge"))
	if serves() != first {
		t.Error("the file is looked at at every connection")
	}
	now = now.Add(10 * time.Second)
	second := serves()
	if second == first {
		t.Error("the new certificate is not taken up")
	}
	for what, b := range map[string][]byte{"another node's": of("other"), "half written": of("edge")[:700], "empty": nil} {
		replace(b)
		now = now.Add(10 * time.Second)
		if serves() != second || !strings.Contains(log.String(), "cannot be used") {
			t.Errorf("%s: taken up, or not told of: %s", what, log.String())
		}
		log.Reset()
	}
	if left := j.own.ends().Sub(time.Now()); left < 360*24*time.Hour {
		t.Errorf("it ends in %v", left)
	}
}
