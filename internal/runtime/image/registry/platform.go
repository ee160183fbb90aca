package registry

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

// pick chooses the manifest of an index for a platform: of that variant, or of
// one that machines of it run as well, the nearest first. Entries of one rank keep
// the index's order. The error wraps image.ErrNotFound.
func pick(index *v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	best, at := -1, v1.Descriptor{}
	var there []v1.Platform
	for _, m := range index.Manifests {
		if !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
			continue
		}
		p := m.Platform
		if p == nil { // an index that does not say is for whoever asks
			p = &v1.Platform{OS: want.OS, Architecture: want.Architecture}
		}
		if r := rank(*p, want); r >= 0 && (best < 0 || r < best) {
			best, at = r, m
		}
		if p.OS != "unknown" && m.Platform != nil { // attestations say unknown
			there = append(there, *p)
		}
	}
	if best < 0 {
		return at, &image.PlatformError{Want: want, There: there}
	}
	return at, nil
}

// rank is how far a platform is from the one wanted; negative where that does not
// run it.
func rank(p, want v1.Platform) int {
	if p.OS != want.OS || p.Architecture != want.Architecture {
		return -1
	}
	got, wanted := variant(p), variant(want)
	switch {
	case got == wanted:
		return 0
	case p.Architecture == "arm" || p.Architecture == "amd64":
		// Later ones run what was made for earlier ones.
		if d := wanted - got; d > 0 {
			return d
		}
	case want.Variant == "":
		return 1
	}
	return -1
}

// variant is the number of a variant, that of the architecture's plain name where
// there is none.
func variant(p v1.Platform) int {
	var n int
	if _, err := fmt.Sscanf(p.Variant, "v%d", &n); err == nil {
		return n
	}
	switch p.Architecture {
	case "arm":
		return 7
	case "arm64":
		return 8
	}
	return 1
}
