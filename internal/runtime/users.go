package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/pod"
)

// User namespaces of pods (KEP-127). The pod process makes one, and the pod's other
// namespaces in it; containers join it. What of the host's a container sees through an
// ID-mapped mount has the owners there that it has here: the layers of its image and
// the volumes. What is made for the pod alone, its /dev/shm, the files bound over its
// /etc and what containers write, belongs on the host to the IDs that the pod's are.

// noUserNamespaces is why a pod cannot have one.
const noUserNamespaces = "user namespaces are not supported: they need Linux 5.19 and user.max_user_namespaces above 0"

// userNamespaces tells whether the kernel gives user namespaces, and overlays over
// ID-mapped layers.
func userNamespaces() bool {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if n, perr := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || perr != nil || n <= 0 {
		return false
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	_, err = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 5 || major == 5 && minor >= 19)
}

// usersOf are the IDs that a sandbox's config asks for; nil for those of the host.
func usersOf(config *runtimeapi.PodSandboxConfig) (*pod.Users, error) {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	o := ns.GetUsernsOptions()
	if o == nil {
		return nil, nil
	}
	switch o.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(o.GetUids())+len(o.GetGids()) > 0 {
			return nil, errors.New("user namespace: the host's has no mappings of its own")
		}
		return nil, nil
	case runtimeapi.NamespaceMode_POD:
	default:
		return nil, fmt.Errorf("user namespace: mode %s is none that a pod can have", o.GetMode())
	}
	if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE || ns.GetIpc() == runtimeapi.NamespaceMode_NODE || ns.GetPid() == runtimeapi.NamespaceMode_NODE {
		return nil, errors.New("user namespace: a pod with one of its own can have no other namespace of the host")
	}
	uids, err := ranges("uids", o.GetUids())
	if err != nil {
		return nil, err
	}
	gids, err := ranges("gids", o.GetGids())
	if err != nil {
		return nil, err
	}
	return &pod.Users{UIDs: uids, GIDs: gids}, nil
}

// ranges of a mapping, in which root must be somebody, and nobody the host's root.
func ranges(name string, mappings []*runtimeapi.IDMapping) ([]pod.IDRange, error) {
	var out []pod.IDRange
	for _, m := range mappings {
		r := pod.IDRange{Inside: m.GetContainerId(), Outside: m.GetHostId(), Length: m.GetLength()}
		switch {
		case r.Length == 0:
			return nil, fmt.Errorf("user namespace: %s: a mapping has no length", name)
		case uint64(r.Inside)+uint64(r.Length) > 1<<32-1 || uint64(r.Outside)+uint64(r.Length) > 1<<32:
			return nil, fmt.Errorf("user namespace: %s: %d IDs from %d as %d are too many", name, r.Length, r.Inside, r.Outside)
		case r.Outside == 0:
			return nil, fmt.Errorf("user namespace: %s: the host's root cannot be mapped", name)
		}
		out = append(out, r)
	}
	if _, ok := pod.Outside(out, 0); !ok {
		return nil, fmt.Errorf("user namespace: %s: ID 0 must be mapped", name)
	}
	return out, nil
}

// root is what the host has for the pod's root.
func (s *sandbox) root() (uid, gid int) {
	if s.users == nil {
		return 0, 0
	}
	u, _ := pod.Outside(s.users.UIDs, 0)
	g, _ := pod.Outside(s.users.GIDs, 0)
	return int(u), int(g)
}

// own gives a file that was made for the pod to its root.
func (s *sandbox) own(path string) error {
	if s.users == nil {
		return nil
	}
	uid, gid := s.root()
	return os.Lchown(path, uid, gid)
}

// pingGroups are the groups that may ping, all there are: in a user namespace those
// from 0 on that it has.
func (s *sandbox) pingGroups() string {
	if s.users == nil {
		return "0 2147483647"
	}
	for _, r := range s.users.GIDs {
		if r.Inside == 0 {
			return fmt.Sprintf("0 %d", min(r.Length-1, 1<<31-1))
		}
	}
	return "0 0"
}

// usersPath is the pod's user namespace, "" for the host's.
func (r *Runtime) usersPath(s *sandbox) string {
	if s.users == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return pod.UsersPath(s.rec.PID)
}

// mapIDs gives a mount the IDs that it is asked for with. Where they are those of the
// pod's namespace, as kubelets ask, the namespace stands for them. What is mounted
// below the source keeps its own.
func (s *sandbox) mapIDs(o *specs.Mount, m *runtimeapi.Mount) {
	if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
		return
	}
	if s.users != nil && same(s.users.UIDs, m.GetUidMappings()) && same(s.users.GIDs, m.GetGidMappings()) {
		o.Options = append(o.Options, "idmap")
		return
	}
	oci := func(mappings []*runtimeapi.IDMapping) (out []specs.LinuxIDMapping) {
		for _, m := range mappings {
			out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
		}
		return out
	}
	o.UIDMappings, o.GIDMappings = oci(m.GetUidMappings()), oci(m.GetGidMappings())
}

func same(have []pod.IDRange, want []*runtimeapi.IDMapping) bool {
	return slices.EqualFunc(have, want, func(r pod.IDRange, m *runtimeapi.IDMapping) bool {
		return r == pod.IDRange{Inside: m.GetContainerId(), Outside: m.GetHostId(), Length: m.GetLength()}
	})
}

// usersRoot is where the root file systems of containers in user namespaces are mounted,
// each in a mount namespace of its own, which shares nothing with the host's. The
// container's first process, nobody outside of its own files, must find a way there:
// there is none through skiff's own directories. skiff-start makes the directory on a
// file system that it mounts over its parent in that mount namespace; what it hides so no
// container could have, since devpts shows no owners mapped.
const usersRoot = "/dev/pts/skiff-root"

// rootPath is where a container's root file system is mounted.
func (r *Runtime) rootPath(c *container) string {
	if c.sb.users != nil {
		return usersRoot
	}
	return r.rootfsDir(c.id)
}
