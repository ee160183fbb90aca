package pod

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPool(t *testing.T) {
	p, err := newPool(netip.MustParsePrefix("10.244.3.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	take := func() netip.Addr {
		t.Helper()
		a, err := p.take()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String()[len("10.244.3."):])
		return a
	}
	first := take()
	take()
	p.release(first)
	for range 5 {
		take()
	}
	if s := strings.Join(got, " "); s != "1 2 3 4 5 6 1" {
		t.Errorf("got %s: the network's and the broadcast address are not used, nor is one again before its turn", s)
	}
	if _, err := p.take(); err == nil || !strings.Contains(err.Error(), "no free address in pod CIDR 10.244.3.0/29: all 6 are in use") {
		t.Errorf("a full pool: %v", err)
	}
}

func TestPoolOfBadPrefix(t *testing.T) {
	for _, s := range []string{"10.244.3.1/24", "10.244.3.0/31", "fd00::/127", "fd00::1/64"} {
		if _, err := newPool(netip.MustParsePrefix(s)); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%s: %v", s, err)
		}
	}
	if _, err := newPool(netip.Prefix{}); err == nil {
		t.Error("no prefix: no error")
	}
}

func TestPoolIPv6(t *testing.T) {
	p, err := newPool(netip.MustParsePrefix("fd00:1::/64"))
	if err != nil {
		t.Fatal(err)
	}
	p.seek(maxPool)
	for _, want := range []string{"fd00:1::1:0:0", "fd00:1::1"} {
		if a, err := p.take(); err != nil || a.String() != want {
			t.Errorf("got %s, %v; want %s", a, err, want)
		}
	}
}

// TestCursors ends the process at every step, round and round: the next one never
// gives an address that was among the last half of those in turn.
func TestCursors(t *testing.T) {
	for _, cidr := range []string{"10.244.3.0/24", "10.244.0.0/16", "10.244.3.0/28", "10.244.3.0/30"} {
		path := filepath.Join(t.TempDir(), "network", "cursors")
		prefix := netip.MustParsePrefix(cidr)
		p, err := newPool(prefix)
		if err != nil {
			t.Fatal(err)
		}
		c := openCursors(path)
		size := p.last - p.first + 1
		recent := min(int(size)/2, 100)
		var past []netip.Addr
		for i := range 600 {
			if i%7 == 3 { // killed and started
				if p, err = newPool(prefix); err != nil {
					t.Fatal(err)
				}
				c = openCursors(path)
				c.restore(p)
			}
			a, err := p.take()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.keep(p); err != nil {
				t.Fatal(err)
			}
			p.release(a)
			// A restart skips up to a quarter of the pool, so look back less there.
			back := min(recent, len(past))
			if size <= 4*ahead {
				back = min(back, int(size)/4)
			}
			for _, b := range past[len(past)-back:] {
				if a == b {
					t.Fatalf("%s: %s is used again after %d others", cidr, a, back)
				}
			}
			past = append(past, a)
		}
	}
}

func TestDamagedCursors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cursors")
	for _, s := range []string{"", "null", "[]", `{"10.244.3.0/24":99999999}`, `{"10.244.3.0/24":0}`, "{"} {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := newPool(netip.MustParsePrefix("10.244.3.0/24"))
		if err != nil {
			t.Fatal(err)
		}
		c := openCursors(path)
		c.restore(p)
		if a, err := p.take(); err != nil || a.String() != "10.244.3.1" {
			t.Errorf("%q: %s, %v", s, a, err)
		}
		if err := c.keep(p); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}
