package build

import (
	"fmt"
	"strconv"
	"strings"
)

// chmod is the mode of --chmod: a number, or what chmod(1) takes ("u+x,go=rX"),
// as POSIX says it with an empty umask.
type chmod struct {
	number  int64 // -1 where the clauses count
	clauses []modeClause
}

// modeClause changes the bits of some; copy is the u, g or o whose permissions
// it takes.
type modeClause struct {
	who  uint32 // mask of all bits that may change
	op   byte
	perm uint32 // for user, group and others alike
	ifX  bool   // X
	copy byte
}

// parseChmod reads --chmod; nil where it is empty.
func parseChmod(s string) (*chmod, error) {
	if s == "" {
		return nil, nil
	}
	bad := fmt.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777", s)
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return nil, bad
		}
		return &chmod{number: int64(n)}, nil
	}
	if s[0] >= '0' && s[0] <= '9' {
		return nil, bad
	}
	c := &chmod{number: -1}
	for _, part := range strings.Split(s, ",") {
		rest := strings.TrimLeft(part, "ugoa")
		who := whoMask(part[:len(part)-len(rest)])
		if rest == "" {
			return nil, fmt.Errorf("invalid chmod parameter: '%s': %q has no +, - or =", s, part)
		}
		for rest != "" {
			op := rest[0]
			if op != '+' && op != '-' && op != '=' {
				return nil, fmt.Errorf("invalid chmod parameter: '%s': %q where +, - or = should be", s, op)
			}
			rest = rest[1:]
			cl := modeClause{who: who, op: op}
			n := 0
			for ; n < len(rest) && strings.IndexByte("rwxXst", rest[n]) >= 0; n++ {
				switch rest[n] {
				case 'r':
					cl.perm |= 0o444
				case 'w':
					cl.perm |= 0o222
				case 'x':
					cl.perm |= 0o111
				case 'X':
					cl.ifX = true
				case 's':
					cl.perm |= 0o6000
				case 't':
					cl.perm |= 0o1000
				}
			}
			if n == 0 && rest != "" && strings.IndexByte("ugo", rest[0]) >= 0 {
				cl.copy, n = rest[0], 1
			}
			rest = rest[n:]
			c.clauses = append(c.clauses, cl)
		}
	}
	return c, nil
}

// whoMask are the bits that a list of u, g, o and a is about; all where it is
// empty.
func whoMask(who string) uint32 {
	if who == "" || strings.Contains(who, "a") {
		return 0o7777
	}
	var m uint32
	for _, w := range who {
		switch w {
		case 'u':
			m |= 0o4700 | 0o1000
		case 'g':
			m |= 0o2070 | 0o1000
		case 'o':
			m |= 0o0007
		}
	}
	return m
}

// apply is what a file's mode becomes.
func (c *chmod) apply(mode uint32, dir bool) uint32 {
	if c == nil {
		return mode
	}
	if c.number >= 0 {
		return uint32(c.number)
	}
	had := mode
	for _, cl := range c.clauses {
		perm := cl.perm
		if cl.ifX && (dir || had&0o111 != 0) {
			perm |= 0o111
		}
		if cl.copy != 0 {
			from := map[byte]uint32{'u': mode >> 6, 'g': mode >> 3, 'o': mode}[cl.copy] & 7
			perm = from<<6 | from<<3 | from
		}
		perm &= cl.who
		switch cl.op {
		case '+':
			mode |= perm
		case '-':
			mode &^= perm
		case '=':
			clear := cl.who
			if perm&0o1000 == 0 && cl.who != 0o7777 {
				clear &^= 0o1000 // the sticky bit is nobody's own
			}
			mode = mode&^clear | perm
		}
	}
	return mode
}
