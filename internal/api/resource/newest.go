package resource

// Newest returns, of the objects that are marked, the newest, and of these the
// first by name: that is how the default one of several classes is chosen. The
// zero T where none is marked.
func Newest[T Object](list []T, marked func(T) bool) T {
	var out T
	found := false
	for _, o := range list {
		if !marked(o) {
			continue
		}
		if found {
			made, best := o.GetCreationTimestamp(), out.GetCreationTimestamp()
			if made.Before(&best) || made.Equal(&best) && o.GetName() > out.GetName() {
				continue
			}
		}
		out, found = o, true
	}
	return out
}
