package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// TestDemo runs what `make demo` runs, from nothing and then again, and expects
// the guestbook's answer by every way in. It downloads Debian packages.
func TestDemo(t *testing.T) {
	c := start(t, "demo")
	port := fmt.Sprint(31000 + rand.IntN(1500))
	for range 2 {
		cmd := exec.Command("../../examples/demo.sh", "--name", c.name, "--data-dir", c.data)
		cmd.Env = append(os.Environ(), "SKIFF="+c.bin, "NODE_PORT="+port)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("demo: %v\n%s", err, out)
		}
		for _, way := range []string{`ClusterIP +http://[0-9.]+/`, `NodePort +http://[0-9.]+:` + port + `/`, `DNS name +http://front\.guestbook\.svc\.cluster\.local/`} {
			if !regexp.MustCompile(`(?m)^` + way + `api/messages +\{"messages": \["hello from the demo".*"visits": [1-9]`).Match(out) {
				t.Errorf("no answer by %s:\n%s", way, out)
			}
		}
	}
}
