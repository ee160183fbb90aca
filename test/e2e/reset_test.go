package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// apartEnv marks the run of a test in namespaces of its own.
const apartEnv = "SKIFF_E2E_APART"

// apart runs the rest of a test in its own network, mount and process namespaces,
// with its own /run and /var/lib: what else runs on the machine meanwhile, other
// clusters too, is then neither seen nor disturbed. It returns false in the
// process that has to do nothing but report what the other found.
func apart(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: they run containers")
	}
	if os.Getenv(apartEnv) == "" {
		limit := os.Getenv("SKIFF_E2E_TIMEOUT")
		if limit == "" {
			limit = "10m"
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+limit)
		cmd.Env = append(os.Environ(), apartEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("the test did not run:\n%s", out)
		}
		t.Logf("%s", out)
		return false
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must(syscall.Mount("proc", "/proc", "proc", 0, ""))
	// What others mount there would go while this test looks.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	for l := range strings.Lines(string(mounts)) {
		if at := strings.Fields(l)[4]; strings.HasPrefix(at, "/run/skiff/") || strings.HasPrefix(at, "/var/lib/skiff/") || strings.HasPrefix(at, os.TempDir()+"/") {
			_ = syscall.Unmount(at, syscall.MNT_DETACH) // gone with one above it, or already
		}
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		own := t.TempDir()
		must(syscall.Mount(own, dir, "", syscall.MS_BIND, ""))
		must(syscall.Mount("", dir, "", syscall.MS_PRIVATE, ""))
	}
	// An uplink with a default route, and a host that does not forward yet.
	for _, args := range []string{
		"link set lo up", "link add up0 type veth peer name up1",
		// No address that appears by itself, in its own time.
		"link set up0 addrgenmode none", "link set up1 addrgenmode none", "link set up0 up", "link set up1 up",
		"addr add 198.51.100.2/24 dev up0", "route add default via 198.51.100.1 dev up0",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", args, err, out)
		}
	}
	must(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644))
	return true
}

// hostState is what skiff could leave on a host, as lines of text by kind.
type hostState map[string][]string

// observe takes a picture of the host. The cgroups are the whole machine's, where
// others make theirs meanwhile: those that have one of the names are observed,
// and those that any kubelet would make.
func observe(t *testing.T, names ...string) hostState {
	t.Helper()
	s := hostState{}
	run := func(kind string, args ...string) {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
		for l := range strings.Lines(string(out)) {
			s[kind] = append(s[kind], strings.TrimSpace(l))
		}
	}
	run("links", "ip", "-o", "link")
	run("addresses", "ip", "-o", "addr")
	run("routes", "ip", "route", "show", "table", "all")
	run("routes6", "ip", "-6", "route", "show", "table", "all")
	run("rules", "ip", "rule")
	run("rules6", "ip", "-6", "rule")
	run("neighbours", "ip", "neigh", "show", "nud", "permanent")
	run("nftables", "nft", "list", "ruleset")

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		f := strings.Fields(l)
		s["mounts"] = append(s["mounts"], f[3]+" "+f[4]+" "+f[5])
	}
	walk := func(kind, dir string, keep func(path string, d fs.DirEntry) bool) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if keep(path, d) {
				s[kind] = append(s[kind], path)
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	all := func(string, fs.DirEntry) bool { return true }
	for _, dir := range []string{"/run", "/var/lib", "/etc", "/opt/cni"} {
		walk("files", dir, all)
	}
	// Other programs' files in the temporary directory come and go.
	walk("files", os.TempDir(), func(path string, _ fs.DirEntry) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.Contains(path, n) })
	})
	walk("cgroups", "/sys/fs/cgroup", func(path string, d fs.DirEntry) bool {
		return d.IsDir() && (strings.Contains(path, "kubepods") && !strings.Contains(path, "/skiff-") || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(path, n) }))
	})
	// Not the counters, nor what comes with a link: links are compared above.
	walk("sysctls", "/proc/sys/net", func(path string, d fs.DirEntry) bool {
		return d.Type().IsRegular() && !strings.Contains(path, "nf_conntrack_count")
	})
	for i, path := range s["sysctls"] {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte("(cannot be read)")
		}
		s["sysctls"][i] += " = " + strings.TrimSpace(string(b))
	}
	procs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil { // gone
			continue
		}
		stat := string(b)
		// Zombies are held by nothing but their parent, who may be busy.
		if strings.Contains(stat, ") Z ") || strings.HasPrefix(stat, strconv.Itoa(os.Getpid())+" ") {
			continue
		}
		args, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		s["processes"] = append(s["processes"], strings.ReplaceAll(string(args), "\x00", " "))
	}
	for kind := range s {
		slices.Sort(s[kind])
	}
	return s
}

// same fails for every line that is in one and not in the other.
func (before hostState) same(t *testing.T, after hostState) {
	t.Helper()
	for kind := range after {
		left, gone := minus(after[kind], before[kind]), minus(before[kind], after[kind])
		if len(left)+len(gone) > 0 {
			t.Errorf("%s: left behind:\n  %s\nmissing:\n  %s", kind, strings.Join(left, "\n  "), strings.Join(gone, "\n  "))
		}
	}
}

func minus(a, b []string) []string {
	have := map[string]int{}
	for _, l := range b {
		have[l]++
	}
	var out []string
	for _, l := range a {
		if have[l]--; have[l] < 0 {
			out = append(out, l)
		}
	}
	return out
}

// whole is an application that uses all that skiff puts on a host.
func whole(hostPort int, says string) string {
	return web(2, says) + fmt.Sprintf(`
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {index.html: "%s volume\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {s: secret}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: all}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:1
    command: [httpd, -f, -p, "8080", -h, /conf]
    ports: [{containerPort: 8080, hostPort: %d}]
    resources: {limits: {memory: 32Mi, cpu: 200m}, requests: {memory: 16Mi}}
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: sec, mountPath: /sec}
    - {name: empty, mountPath: /empty}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host}
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  - {name: host, image: "busybox:1", command: [sleep, "100000"], securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true}}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: sec, secret: {secretName: sec}}
  - {name: empty, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: /etc}}
---
apiVersion: v1
kind: Pod
metadata: {name: onhost}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
`, says, hostPort)
}

// TestResetLeavesNothing runs two clusters side by side, each with pods, volumes,
// services and host ports; kills one; resets both; and finds the host as it was.
func TestResetLeavesNothing(t *testing.T) {
	if !apart(t) {
		return
	}
	if _, err := os.Stat(skiffBin); err != nil {
		t.Fatalf("skiff is not built (make build): %v", err)
	}
	// The process id says nothing in a namespace of processes of its own.
	id := regexp.MustCompile(`\D`).ReplaceAllString(t.TempDir(), "")
	names := []string{"left-" + id, "right-" + id}
	before := observe(t, names...)
	var both []*cluster
	for i, n := range names {
		c := &cluster{t: t, bin: skiffBin, name: n, data: "/var/lib/skiff/" + n, carried: true}
		t.Cleanup(func() {
			if t.Failed() {
				c.dump()
			}
			if out, err := c.skiff("reset", "--yes"); err != nil {
				t.Errorf("reset: %v\n%s", err, out)
			}
		})
		c.up()
		c.importBusybox()
		c.apply(whole(18080+i, n))
		both = append(both, c)
	}
	ips := make([]string, 2)
	answers := func(i int) {
		t.Helper()
		c := both[i]
		ips[i] = c.jsonpath("service/web", ".spec.clusterIP")
		for url, want := range map[string]string{
			"http://" + ips[i]: c.name + " web-",
			"http://198.51.100.2:" + c.jsonpath("service/web", ".spec.ports[0].nodePort"): c.name + " web-",
			fmt.Sprintf("http://198.51.100.2:%d", 18080+i):                                c.name + " volume",
		} {
			c.eventually(url+" answers", func() (bool, string) {
				out, err := fetch(url)
				return err == nil && strings.HasPrefix(out, want), fmt.Sprint(out, err)
			})
		}
		if out := c.kubectl("exec", "all", "-c", "main", "--", "wget", "-q", "-O", "-", "http://web"); !strings.HasPrefix(out, c.name+" web-") {
			t.Errorf("in cluster %s the service web is %q", c.name, out)
		}
	}
	for _, c := range both {
		c.rollout("web")
		c.is("pod/all", readyPath, "True")
		c.is("pod/onhost", readyPath, "True")
	}
	answers(0)
	answers(1)
	// Each finds its own services alone: those of the other have no name here.
	both[1].kubectl("create", "service", "clusterip", "only-right", "--tcp=80:8080")
	if out, err := both[0].kubectlErr("exec", "all", "-c", "main", "--", "nslookup", "only-right.default.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("in cluster %s a service of the other is found: %v %s", both[0].name, err, out)
	}
	if out := both[0].kubectl("get", "services", "-o", "name"); strings.Contains(out, "only-right") {
		t.Errorf("cluster %s lists %s", both[0].name, out)
	}
	during := observe(t, names...)
	for _, kind := range []string{"links", "addresses", "routes", "nftables", "mounts", "files", "cgroups", "sysctls", "processes"} {
		if len(minus(during[kind], before[kind])) == 0 {
			t.Errorf("two clusters run and no %s of theirs are seen: this test sees nothing", kind)
		}
	}

	both[0].kill9()
	if out, err := both[0].skiff("reset", "--yes"); err != nil {
		t.Fatalf("reset of the killed: %v\n%s", err, out)
	}
	answers(1) // undisturbed
	if out, err := both[1].skiff("reset", "--yes"); err != nil {
		t.Fatalf("reset of the running: %v\n%s", err, out)
	}
	before.same(t, observe(t, names...))
}
