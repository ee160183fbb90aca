// Package host names everything that skiff puts on a machine and keeps the
// journal of it.
//
// Every name derives from the instance's name, so that two clusters run side by
// side and tests choose their own. What exists once per instance (a table, a
// cgroup parent, a directory, a changed sysctl) stands in the journal before it
// is made; what exists per pod is found again by its derived name or below one
// of those. Index finds an instance's data directory by its name.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
)

// DefaultName is the instance that commands mean when none is named.
const DefaultName = "default"

// Instance is one cluster's presence on this host.
type Instance struct {
	// Name is a DNS label of at most 30 characters.
	Name string
	// DataDir keeps what must outlive a reboot (etcd, images, PKI).
	DataDir string
	// RunDir keeps what a reboot ends (sockets, pod state). It is on tmpfs where
	// /run is.
	RunDir string
	// CgroupParent is the absolute cgroup path, in every hierarchy used, under
	// which all pods' cgroups live.
	CgroupParent string
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?$`)

// New returns the instance of that name with the default directories; dataDir,
// where not empty, replaces the data directory.
func New(name, dataDir string) (Instance, error) {
	if name == "" {
		name = DefaultName
	}
	if !nameRE.MatchString(name) {
		return Instance{}, fmt.Errorf("name %q: must be a lower case DNS label of at most 30 characters", name)
	}
	if dataDir == "" {
		dataDir = filepath.Join(StateDir, name)
	}
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return Instance{}, fmt.Errorf("data directory %q: %w", dataDir, err)
	}
	return Instance{
		Name:         name,
		DataDir:      abs,
		RunDir:       filepath.Join("/run/skiff", name),
		CgroupParent: "/skiff-" + name,
	}, nil
}

// Tag is a short stable hash of the name (4 hex digits), for names of limited
// length.
func (i Instance) Tag() string {
	sum := sha256.Sum256([]byte(i.Name))
	return hex.EncodeToString(sum[:2])
}

// Link returns the name of a network link of this instance for an owner (a
// sandbox ID, say): at most 15 characters, "sk" + tag + 9 hex digits.
func (i Instance) Link(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return i.LinkPrefix() + hex.EncodeToString(sum[:])[:9]
}

// LinkPrefix starts the names of the links of all instances.
const LinkPrefix = "sk"

// LinkPrefix starts the name of every link of this instance.
func (i Instance) LinkPrefix() string { return LinkPrefix + i.Tag() }

// Table is the name of this instance's nftables tables.
func (i Instance) Table() string { return "skiff-" + i.Name }

// Data returns a path below DataDir.
func (i Instance) Data(elem ...string) string {
	return filepath.Join(append([]string{i.DataDir}, elem...)...)
}

// Run returns a path below RunDir.
func (i Instance) Run(elem ...string) string {
	return filepath.Join(append([]string{i.RunDir}, elem...)...)
}

// AdminSocket is the unix socket of the running skiff.
func (i Instance) AdminSocket() string { return i.Run("admin.sock") }

// JournalPath is the file of the journal. A boot ends both what is in the journal
// and the journal itself: it must not be taken for what another boot put there.
func (i Instance) JournalPath() string { return i.Run("journal") }
