package userns_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/kubelet/userns"
)

// node is a kubelet's directory of pods.
type node struct {
	t    *testing.T
	dir  string
	deps userns.Deps
}

func newNode(t *testing.T, change func(*userns.Deps)) *node {
	n := &node{t: t, dir: t.TempDir()}
	n.deps = userns.Deps{
		Dir: func(p types.UID) string { return filepath.Join(n.dir, string(p)) },
		All: func() (out []types.UID) {
			entries, err := os.ReadDir(n.dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				out = append(out, types.UID(e.Name()))
			}
			return out
		},
		MaxPods: 2, Pick: func(int) int { return 0 },
	}
	if change != nil {
		change(&n.deps)
	}
	return n
}

func (n *node) pod(uid types.UID) types.UID {
	n.t.Helper()
	if err := os.MkdirAll(n.deps.Dir(uid), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return uid
}

func (n *node) start(problems ...string) *userns.Allocator {
	n.t.Helper()
	a, got, err := userns.New(n.deps)
	if err != nil {
		n.t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(problems) {
		n.t.Fatalf("problems %v, want %v", got, problems)
	}
	return a
}

func (n *node) get(a *userns.Allocator, pod types.UID, first uint32) {
	n.t.Helper()
	got, length, err := a.Get(pod)
	if err != nil || got != first || length != userns.Unit {
		n.t.Errorf("%s has %d IDs from %d, %v; want %d from %d", pod, length, got, err, userns.Unit, first)
	}
}

func (n *node) fails(a *userns.Allocator, pod types.UID, want string) {
	n.t.Helper()
	if _, _, err := a.Get(pod); err == nil || err.Error() != want {
		n.t.Errorf("%s: error %v, want %s", pod, err, want)
	}
}

// A pod keeps its IDs, also over a restart, until it is released; another one has others.
func TestGet(t *testing.T) {
	n := newNode(t, nil)
	a := n.start()
	n.get(a, n.pod("a"), 65536)
	n.get(a, n.pod("b"), 131072)
	n.get(a, "a", 65536)

	b, err := os.ReadFile(filepath.Join(n.dir, "a", "userns"))
	const want = `{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}`
	if string(b) != want || err != nil {
		t.Errorf("recorded %s, %v; want %s", b, err, want)
	}

	a = n.start()
	n.get(a, n.pod("c"), 196608)
	n.get(a, "b", 131072)
	if err := a.Release("a"); err != nil {
		t.Fatal(err)
	}
	if err := a.Release("unknown"); err != nil {
		t.Fatal(err)
	}
	n.get(a, n.pod("d"), 65536)
	a = n.start()
	n.get(a, "a", 262144)
}

// The IDs that a node has are all given out, and no more.
func TestExhaustion(t *testing.T) {
	n := newNode(t, func(d *userns.Deps) { d.First, d.Length, d.Pick = 5*65536, 2*65536, func(n int) int { return n - 1 } })
	a := n.start()
	n.get(a, n.pod("a"), 6*65536)
	n.get(a, n.pod("b"), 5*65536)
	n.fails(a, n.pod("c"), "create user namespace: could not find an empty slot to allocate a user namespace")
	if err := a.Release("a"); err != nil {
		t.Fatal(err)
	}
	n.get(a, "c", 6*65536)
}

// The last IDs of the host end with the last that there can be.
func TestLast(t *testing.T) {
	n := newNode(t, func(d *userns.Deps) { d.Pick = func(n int) int { return n - 1 } })
	n.get(n.start(), n.pod("a"), 1<<32-65536)
}

// What is recorded and cannot be is told, and does not become another pod's.
func TestDamage(t *testing.T) {
	good := func(first, inside, length int) string {
		m := fmt.Sprintf(`[{"hostId":%d,"containerId":%d,"length":%d}]`, first, inside, length)
		return `{"uidMappings":` + m + `,"gidMappings":` + m + `}`
	}
	for want, content := range map[string]string{
		"invalid user namespace mappings file: unexpected end of JSON input":              `{`,
		"invalid user namespace configuration: no more than one mapping allowed.":         `{}`,
		"invalid user namespace configuration: GID and UID mappings should be identical.": `{"uidMappings":[{}]}`,
		"invalid user namespace configuration: GID and UID mapping should be identical":   `{"uidMappings":[{"hostId":1}],"gidMappings":[{"hostId":2}]}`,
		"invalid user namespace configuration: UID 0 must be mapped":                      good(65536, 1, 65536),
		"wrong user namespace length 1":                                                   good(65536, 0, 1),
		"wrong user namespace offset specified 65537":                                     good(65537, 0, 65536),
		"id 0 is out of range":                   good(0, 0, 65536),
		`range picked for pod "b" already taken`: good(65536, 0, 65536),
	} {
		n := newNode(t, nil)
		n.get(n.start(), n.pod("a"), 65536)
		if err := os.WriteFile(filepath.Join(n.deps.Dir(n.pod("b")), "userns"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		a := n.start(`record pod mappings for existing pod "b": ` + want)
		n.get(a, "a", 65536)
		n.fails(a, "b", "user namespace: "+want)
		n.get(a, n.pod("c"), 131072)
	}
	// A record that was never written whole is none.
	n := newNode(t, nil)
	if err := os.WriteFile(filepath.Join(n.deps.Dir(n.pod("a")), "userns"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := n.start()
	n.get(a, "a", 65536)
	if err := os.WriteFile(filepath.Join(n.dir, "a", "userns"), []byte(good(131072, 0, 65536)), 0o600); err != nil {
		t.Fatal(err)
	}
	n.fails(a, "a", `user namespace: different user namespace range already used by pod "a"`)
}

func TestRefused(t *testing.T) {
	for want, d := range map[string]userns.Deps{
		"kubelet user namespace length 65537 is not a multiple of 65536":    {IDsPerPod: 65537},
		"kubelet user assigned ID 65537 is not a multiple of 65536":         {First: 65537, Length: 65536},
		"kubelet user assigned ID 0 must be greater or equal to 65536":      {First: 0, Length: 65536},
		"kubelet user assigned IDs length 65537 is not a multiple of 65536": {First: 65536, Length: 65537},
		"kubelet user assigned IDs are not enough to support 110 pods":      {First: 65536, Length: 65536 * 109, MaxPods: 110},
		"kubelet user assigned IDs are not enough to support 70000 pods":    {MaxPods: 70000},
	} {
		if _, _, err := userns.New(d); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// Pods that ask at once get IDs of their own.
func TestConcurrent(t *testing.T) {
	n := newNode(t, func(d *userns.Deps) { d.Pick = nil })
	a := n.start()
	var mu sync.Mutex
	seen := map[uint32]types.UID{}
	var wg sync.WaitGroup
	for i := range 50 {
		pod := n.pod(types.UID(fmt.Sprint("pod-", i)))
		wg.Go(func() {
			first, _, err := a.Get(pod)
			mu.Lock()
			defer mu.Unlock()
			if other, taken := seen[first]; taken || err != nil || first%userns.Unit != 0 || first == 0 {
				t.Errorf("%s has %d, %v, as %s has", pod, first, err, other)
			}
			seen[first] = pod
		})
	}
	wg.Wait()
	left, _ := filepath.Glob(filepath.Join(n.dir, "*", ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, " "))
	}
}
