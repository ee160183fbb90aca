package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Access says how a registry is reached.
type Access struct {
	// Auth are the credentials; nil for none.
	Auth *Auth
	// Insecure takes any certificate, and plain HTTP where there is no TLS.
	Insecure bool
}

// Registry reaches registries (package registry does). Errors of all its methods
// wrap ErrNotFound, ErrUnauthorized, ErrUnavailable or ErrCorrupt.
type Registry interface {
	// Find asks the registry of n for the image that n names, for a platform.
	Find(ctx context.Context, n Name, p v1.Platform, a Access) (*RemoteImage, error)
	// Push makes u known as n in its registry.
	Push(ctx context.Context, n Name, u Upload, a Access) error
}

// RemoteImage is an image in a registry.
type RemoteImage struct {
	// Manifest describes the image's manifest.
	Manifest v1.Descriptor
	// Digest is what the name means: of the manifest, or of the index that lists
	// it.
	Digest v1.Hash
	// Fetch opens the manifest, the config or a layer. Contents need not be
	// verified.
	Fetch func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// Upload is an image that goes to a registry.
type Upload struct {
	Manifest v1.Descriptor
	Raw      []byte // the manifest
	Blobs    []v1.Descriptor
	// Open opens a blob.
	Open func(v1.Hash) (*os.File, error)
	// From are repositories ("team/app") of the same registry that have a blob.
	From map[v1.Hash][]string
	// Progress is never nil.
	Progress Progress
}

// Stage is how far a blob is.
type Stage string

// Stages of pulls and pushes, in the words that docker shows.
const (
	Waiting     Stage = "Waiting"
	Downloading Stage = "Downloading"
	Verifying   Stage = "Verifying Checksum"
	Downloaded  Stage = "Download complete"
	Extracting  Stage = "Extracting"
	Pulled      Stage = "Pull complete"
	Exists      Stage = "Already exists"
	Preparing   Stage = "Preparing"
	Pushing     Stage = "Pushing"
	Pushed      Stage = "Pushed"
	Mounted     Stage = "Mounted from"
	Present     Stage = "Layer already exists"
)

// Ends tells whether a blob is done with at this stage.
func (s Stage) Ends() bool {
	switch s {
	case Pulled, Exists, Pushed, Mounted, Present:
		return true
	}
	return false
}

// Event is that a layer got further.
type Event struct {
	Digest v1.Hash
	Stage  Stage
	// Done and Total are bytes, where the stage moves any.
	Done, Total int64
	// From is the repository that a layer was mounted from.
	From string
}

// Progress hears how a pull or push goes, from several goroutines. It must not
// block for long.
type Progress func(Event)

// counted tells progress of what is read.
type counted struct {
	io.Reader
	event    Event
	progress Progress
	told     int64
}

// step is how many bytes go by between two events of one layer.
const step = 256 << 10

// Counted tells p of what is read from r, as e says.
func Counted(r io.Reader, e Event, p Progress) io.Reader {
	return &counted{Reader: r, event: e, progress: p}
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.event.Done += int64(n)
	if c.event.Done-c.told >= step || err == io.EOF && c.event.Done != c.told {
		c.told = c.event.Done
		c.progress(c.event)
	}
	return n, err
}

// PlatformError is that an image is not there for the platform wanted. It is an
// ErrNotFound.
type PlatformError struct {
	Want  v1.Platform
	There []v1.Platform
}

func (e *PlatformError) Error() string {
	text := fmt.Sprintf("no match for platform %s in manifest: not found", e.Want)
	if len(e.There) == 0 {
		return text
	}
	there := make([]string, 0, len(e.There))
	for _, p := range e.There {
		there = append(there, p.String())
	}
	return text + " (there is " + strings.Join(there, ", ") + ")"
}

func (e *PlatformError) Unwrap() error { return ErrNotFound }

// PlatformOf is what an image's config says that it runs on; parts that it does not
// say are empty.
func PlatformOf(c *v1.ConfigFile) v1.Platform {
	return v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

// Host is the platform of this machine.
func Host() v1.Platform {
	p := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	switch p.Architecture {
	case "arm":
		p.Variant = "v7"
	case "arm64":
		p.Variant = "v8"
	}
	return p
}

// ParsePlatform reads what users write: "linux/arm64", "linux/arm/v7", "arm64".
// Nothing is the platform of this machine.
func ParsePlatform(s string) (v1.Platform, error) {
	p := Host()
	if s == "" {
		return p, nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	for _, part := range parts {
		if part == "" || strings.ContainsAny(part, ": @") {
			return p, fmt.Errorf("platform %q: must be OS/ARCHITECTURE[/VARIANT], such as linux/arm64", s)
		}
	}
	switch {
	case len(parts) > 3:
		return p, fmt.Errorf("platform %q: must be OS/ARCHITECTURE[/VARIANT], such as linux/arm64", s)
	case len(parts) == 1 && parts[0] == "linux":
		return p, nil
	case len(parts) == 1:
		parts = []string{"linux", parts[0]}
	}
	variant := ""
	if len(parts) == 3 {
		variant = parts[2]
	}
	switch parts[1] { // as machines call themselves
	case "x86_64", "x86-64":
		parts[1] = "amd64"
	case "aarch64":
		parts[1] = "arm64"
	case "armhf":
		parts[1], variant = "arm", "v7"
	}
	return v1.Platform{OS: parts[0], Architecture: parts[1], Variant: variant}, nil
}
