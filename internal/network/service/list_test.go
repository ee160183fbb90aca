package service

import (
	"os/exec"
	"strings"
	"testing"
)

// TestListable lists the rules with nft(8), whose older versions end abnormally
// at rules that they cannot show, to the harm of whoever looks at a host's rules
// or keeps a firewall there. (Of session affinity they do: that is known.)
func TestListable(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed: nothing to list with")
	}
	tn := newNode(t, "svc-test-list")
	a, b := tn.pod("a"), tn.pod("b")
	local := web(a, b)
	local.Key, local.ClusterIPs, local.ExternalLocal = "default/local", nil, true
	local.Ports[0].NodePort, local.Ports[1].NodePort = 30081, 30082
	local.ClusterIPs = web().ClusterIPs[:1]
	local.ClusterIPs[0] = local.ClusterIPs[0].Next()
	none := web()
	none.Key, none.ClusterIPs, none.Ports = "default/none", web().ClusterIPs[:1], none.Ports[:1]
	none.ClusterIPs[0], none.Ports[0].NodePort = none.ClusterIPs[0].Next().Next(), 0
	tn.sync(web(a, b), local, none)
	out := tn.node.Ruleset()
	for _, want := range []string{"10.96.0.20 . tcp . 8080", "chain to-2-outside", "chain node-2-local-2", "table ip6 skiff-svc-test-list-services"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not listed", want)
		}
	}
	for _, bad := range []string{"Assertion", "Error", "rror:"} {
		if strings.Contains(out, bad) {
			t.Errorf("listing shows %q", bad)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}
