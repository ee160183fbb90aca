package cli

import (
	"testing"
	"time"

	"skiff/internal/pki"
)

func TestCertTable(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	cert := func(name, use string, from, to time.Duration) pki.Certificate {
		c := pki.Certificate{Name: name, Owner: "o-" + name, Uses: []string{use}, CA: "ca", NotBefore: now.Add(from), NotAfter: now.Add(to)}
		if use != "authority" {
			c.Renews = c.NotAfter.Add(-(to - from) / 3)
		}
		return c
	}
	node := cert("kubelet", "server", -100*day, 260*day)
	node.Groups = []string{"system:nodes"}
	got := certTable([]pki.Certificate{
		cert("ca", "authority", -day, 3649*day), cert("old", "authority", -3350*day, 300*day), node,
		cert("due", "client", -300*day, 60*day), cert("ended", "client", -365*day, -day), cert("last", "client", -364*day, 30*time.Hour),
		cert("early", "client", day, 366*day),
	}, now)
	const want = `NAME      OWNER                      USE         CA   EXPIRES      LEFT    NOTE
ca        o-ca                       authority   ca   2036-05-28   3649d   
old       o-old                      authority   ca   2027-03-28   300d    ends soon and is not renewed: see skiff certs --help
kubelet   o-kubelet (system:nodes)   server      ca   2027-02-16   260d    renewed from 2026-10-19
due       o-due                      client      ca   2026-07-31   60d     due: renewed by a running skiff within hours
ended     o-ended                    client      ca   2026-05-31   none    expired
last      o-last                     client      ca   2026-06-02   30h     due: renewed by a running skiff within hours
early     o-early                    client      ca   2027-06-02   366d    not valid yet
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
