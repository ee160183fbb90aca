package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skiff/internal/network/pod"
)

// The path of a namespace names a process, whose number another one may have got
// since, one of the host say. Plugins delete links in the namespace they are told:
// it must be the one that the pod was attached with. So its identity is kept.

func (n *Network) namespaceFile(id string) string {
	return n.deps.Instance.Run("cni", "namespaces", filepath.Base(id))
}

func namespaceID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("namespace %s: %w", path, err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

func (n *Network) keepNamespace(s pod.Sandbox) error {
	id, err := namespaceID(s.NetNS)
	if err != nil {
		return err
	}
	file := n.namespaceFile(s.ID)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(id+"\n"), 0o600)
}

// sameNamespace tells whether the sandbox's path still leads to the namespace that
// it was attached with.
func (n *Network) sameNamespace(s pod.Sandbox) bool {
	was, err := os.ReadFile(n.namespaceFile(s.ID))
	if err != nil || s.NetNS == "" {
		return false
	}
	id, err := namespaceID(s.NetNS)
	return err == nil && id == strings.TrimSpace(string(was))
}
