package authn

import (
	"crypto/x509"
	"maps"
	"slices"
	"sync"
	"time"

	"skiff/internal/api/resource"
)

// verified remembers certificates whose signatures were checked: a connection
// shows the same one with every request, and a check costs more than most
// requests. What can change is checked every time: the clock. The authorities
// never change while the process lives.
type verified struct {
	mu sync.Mutex
	by map[*x509.Certificate]holder
}

type holder struct {
	user        *resource.User
	from, until time.Time // while every certificate of the chain holds
}

// mostVerified bounds what is remembered; then it starts over.
const mostVerified = 4096

// get returns the holder of a certificate that was found good before and still is,
// the caller's to change; nil where it must be verified.
func (v *verified) get(c *x509.Certificate, now time.Time) *resource.User {
	v.mu.Lock()
	h, ok := v.by[c]
	v.mu.Unlock()
	if !ok || now.Before(h.from) || now.After(h.until) {
		return nil
	}
	u := *h.user
	u.Groups = slices.Clone(u.Groups)
	u.Extra = maps.Clone(u.Extra)
	return &u
}

func (v *verified) put(c *x509.Certificate, u *resource.User, chain []*x509.Certificate) {
	kept := *u
	kept.Groups = slices.Clone(u.Groups)
	kept.Extra = maps.Clone(u.Extra)
	h := holder{user: &kept, from: c.NotBefore, until: c.NotAfter}
	for _, link := range chain {
		if link.NotBefore.After(h.from) {
			h.from = link.NotBefore
		}
		if link.NotAfter.Before(h.until) {
			h.until = link.NotAfter
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.by == nil || len(v.by) >= mostVerified {
		v.by = map[*x509.Certificate]holder{}
	}
	v.by[c] = h
}
