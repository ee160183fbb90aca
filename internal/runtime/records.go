package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// phase of a sandbox, as it stands on disk.
type phase string

const (
	// phaseCreating: RunPodSandbox has not answered; nobody knows the ID.
	phaseCreating phase = "creating"
	phaseReady    phase = "ready"
	// phaseStopped: StopPodSandbox was asked for.
	phaseStopped phase = "stopped"
)

// sandboxRecord is what a sandbox is on disk, in sandbox.json.
type sandboxRecord struct {
	ID      string       `json:"id"`
	Config  []byte       `json:"config"` // PodSandboxConfig
	Handler string       `json:"handler,omitempty"`
	Created time.Time    `json:"created"`
	Phase   phase        `json:"phase"`
	PID     int          `json:"pid,omitempty"`
	NSInit  int          `json:"nsinit,omitempty"`
	IPs     []netip.Addr `json:"ips,omitempty"`
	// Boot is the kernel's boot ID: after another boot nothing of it runs.
	Boot string `json:"boot"`
}

// containerRecord is what a container is on disk, in container.json.
type containerRecord struct {
	ID        string    `json:"id"`
	SandboxID string    `json:"sandbox"`
	Config    []byte    `json:"config"` // ContainerConfig
	ImageID   string    `json:"imageID"`
	ImageRef  string    `json:"imageRef"`
	Created   time.Time `json:"created"`
	LogPath   string    `json:"logPath,omitempty"`
	// StopSignal is the image's, "" for SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`
	Cgroup     string `json:"cgroup"`
	// Resources are LinuxContainerResources after an update; else the config's.
	Resources []byte `json:"resources,omitempty"`
	// From is the container whose root file system this one took over, or is about to.
	From string `json:"from,omitempty"`
}

// Names of files in the directory of a sandbox or container.
const (
	sandboxFile   = "sandbox.json"
	containerFile = "container.json"
	// startedFile says that StartContainer was asked for.
	startedFile = "started"
)

// writeRecord replaces the file at once. Most records need to outlive skiff, not the
// machine: they are not synced.
func writeRecord(dir, name string, v any) error { return replaceRecord(dir, name, v, false) }

// writeSynced is writeRecord for what outlives a crash of the machine.
func writeSynced(dir, name string, v any) error { return replaceRecord(dir, name, v, true) }

func replaceRecord(dir, name string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	tmp := filepath.Join(dir, "."+name)
	if err = os.WriteFile(tmp, b, 0o600); err == nil && sync {
		err = syncPath(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err == nil && sync {
		err = syncPath(dir)
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func readRecord(dir, name string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("record %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

func encode(m proto.Message) ([]byte, error) { return proto.Marshal(m) }

// removeAll removes a directory so that what is half removed is never taken for
// whole: under another name first.
func removeAll(dir string) error {
	gone := filepath.Join(filepath.Dir(dir), ".gone-"+filepath.Base(dir))
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}
