package startspec

// User is who a container runs as, before names are looked up in its own
// /etc/passwd and /etc/group, which only skiff-start sees.
type User struct {
	// User is "", a name or a number; Group too, "" for the user's own.
	User, Group string
	// Extra groups are added to those that /etc/group gives the user, or, with
	// Strict, stand alone.
	Extra  []uint32
	Strict bool
}
