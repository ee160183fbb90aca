// Package startspec is what the runtime hands to skiff-start: the file
// "spec.json" in a container's bundle directory for a new container, and a file
// of an Exec for one more process in a running container.
//
// The file is read by the skiff-start of the same content hash as the runtime
// that wrote it, and by no other: it needs no version.
package startspec

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ProcessFile is where skiff-start leaves the OCI process with everything looked
// up, in the bundle, for exec.
const ProcessFile = "process.json"

// File is the name of a container's spec in its bundle.
const File = "spec.json"

// Overlay is a root file system to mount at the OCI spec's root path, in the
// mount namespace that is made for the container: no mount of it ever exists on
// the host, and it goes with the container's last process.
type Overlay struct {
	// Lower are the layers, uppermost first; without Upper the view is
	// read-only.
	Lower       []string `json:"lower"`
	Upper, Work string   `json:",omitempty"`
	// Durable: what is written outlives the container, and a crash of the machine where
	// the container had it synced. Otherwise nothing is ever synced.
	Durable bool `json:"durable,omitempty"`
}

// Image is an image that the container mounts. It is there for the OCI mounts to
// bind from: at ImageRoot below At or, where Sub is set, the directory or file Sub
// of the image at ImageSub below At. Like the root file system it exists in the
// container's mount namespace alone; of the host At is an empty directory.
type Image struct {
	Lower []string `json:"lower"` // as Overlay's
	At    string   `json:"at"`
	Sub   string   `json:"sub,omitempty"`
}

// Names below Image.At.
const (
	ImageRoot = "root"
	ImageSub  = "sub"
)

// Spec is a container to make.
type Spec struct {
	OCI     *specs.Spec `json:"oci"`
	Overlay *Overlay    `json:"overlay,omitempty"`
	Images  []Image     `json:"images,omitempty"`
	// User is looked up in the root file system and put into OCI.
	User User `json:"user"`
	// DefaultSeccomp asks for the RuntimeDefault profile, which depends on the
	// capabilities in OCI.
	DefaultSeccomp bool `json:"defaultSeccomp,omitempty"`
	// Users is the user namespace that the container joins, "" for the host's. Overlay
	// and Images are mounted with the IDs mapped that it has.
	Users string `json:"users,omitempty"`
	// Filters is a directory, root's alone, where compiled seccomp filters are
	// kept for the next container; "" for none.
	Filters string `json:"filters,omitempty"`
}

// Exec is one more process of a running container.
type Exec struct {
	specs.Process
	// As, where not nil, is looked up in the container's root file system and put
	// into the process.
	As *User `json:"as,omitempty"`
}

// Write stores v at path. The file is read once, right away or after a restart
// of the runtime, never after a reboot: it is not synced.
func Write(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// Read loads v from path.
func Read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
