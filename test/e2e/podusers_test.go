package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ownerOf is who a file belongs to on the host.
func (c *cluster) ownerOf(path string) string {
	c.t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		c.t.Fatal(err)
	}
	s := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", s.Uid, s.Gid)
}

// runsAs is the host's ID of the process that has an argument.
func (c *cluster) runsAs(arg string) string {
	c.t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), "sleep\x00"+arg+"\x00") {
			return c.ownerOf(filepath.Dir(p))
		}
	}
	c.t.Fatalf("no process has the argument %s", arg)
	return ""
}

// podUsers: hostUsers and procMount.
func podUsers(c *cluster) {
	dir := c.t.TempDir()
	const stat = `/bin/busybox stat -L -c '%n %u:%g %a' `
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: conf-a}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {s: hidden}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
` + spec("own", `
  hostUsers: false
  securityContext: {fsGroup: 2000}
  initContainers:
  - name: init
    image: busybox:1
    command: [sh, -c, 'cat /proc/self/uid_map > /disk/map; echo x > /disk/f; /bin/busybox chown 5:6 /disk/f']
    volumeMounts: [{name: disk, mountPath: /disk}]
  - name: side
    image: busybox:1
    restartPolicy: Always
    command: [/bin/busybox, nc, -ll, -p, "80", -e, /bin/busybox, cat, /proc/self/uid_map]
    startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, '`+strings.ReplaceAll(stat, "'", "''")+`/ /bin/busybox /etc/hosts /etc/resolv.conf /etc/hostname /dev/termination-log /disk /disk/f /mem /conf/a /sec/s /all/token /host /pvc /sub; echo y > /mem/f; echo z > /host/f; /bin/busybox chown 1000:1000 /host/f; echo w > /pvc/f; echo bye > /dev/termination-log; cat /proc/self/uid_map; cmp=$(cat /disk/map); test "$cmp" = "$(cat /proc/self/uid_map)" && echo same; sleep 54321 & while ! test -e /end; do sleep 0.2; done; exit 1']
    readinessProbe: {exec: {command: [sh, -c, 'test -O /etc/passwd']}, periodSeconds: 1}
    lifecycle: {preStop: {exec: {command: [sh, -c, 'id > /host/stopped']}}}
    securityContext: {capabilities: {add: [SYS_ADMIN]}}
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: mem, mountPath: /mem}
    - {name: conf, mountPath: /conf}
    - {name: sec, mountPath: /sec}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /host}
    - {name: data, mountPath: /pvc}
    - {name: data, mountPath: /sub, subPath: deep/dir}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory}}
  - {name: conf, configMap: {name: conf}}
  - {name: sec, secret: {secretName: sec, defaultMode: 0400}}
  - {name: all, projected: {sources: [{serviceAccountToken: {path: token}}]}}
  - {name: host, hostPath: {path: `+dir+`}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
`) + spec("user", `
  restartPolicy: Never
  hostUsers: false
  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [5000]}
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'id; echo out > /dev/stdout; cat /proc/self/uid_map']}]
`) + spec("shared", `
  hostUsers: false
  shareProcessNamespace: true
  containers:
  - {name: one, image: "busybox:1", command: [sleep, "54322"]}
  - {name: two, image: "busybox:1", command: [sleep, "54323"]}
`) + spec("unmasked", `
  restartPolicy: Never
  hostUsers: false
  containers:
  - {name: main, image: "busybox:1", command: [sh, -c, 'echo 1 > /proc/sys/net/ipv4/ip_forward && echo writable; grep -c " /proc/" /proc/self/mounts; true'], securityContext: {procMount: Unmasked, capabilities: {add: [NET_ADMIN]}}}
  - {name: masked, image: "busybox:1", command: [sh, -c, 'echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward || echo read-only; test $(grep -c " /proc/" /proc/self/mounts) -gt 5 && echo masked'], securityContext: {capabilities: {add: [NET_ADMIN]}}}
`) + spec("nomap", `
  hostUsers: false
  containers: [{name: main, image: "busybox:1", command: [sleep, "1"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, hostPath: {path: /proc/tty}}]
`))
	c.is("pod/own", readyPath, "True")
	lines := strings.Split(c.kubectl("logs", "own", "-c", "main"), "\n")
	want := `/ 0:0 755
/bin/busybox 0:0 755
/etc/hosts 0:0 644
/etc/resolv.conf 0:0 644
/etc/hostname 0:0 644
/dev/termination-log 0:0 666
/disk 0:2000 2777
/disk/f 5:6 644
/mem 0:2000 2777
/conf/a 0:2000 644
/sec/s 0:2000 440
/all/token 0:2000 640
/host 0:0 755
/pvc 0:2000 2777
/sub 0:2000 2777`
	if n := strings.Count(want, "\n") + 1; len(lines) < n+2 || strings.Join(lines[:n], "\n") != want || lines[n+1] != "same" {
		c.t.Errorf("the pod sees\n%s\nwant\n%s", strings.Join(lines, "\n"), want)
	}
	// The process and what it wrote, as the host sees them.
	var first, length int
	idMap := c.kubectl("exec", "own", "-c", "main", "--", "cat", "/proc/self/uid_map")
	if _, err := fmt.Sscan(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(idMap), "0")), &first, &length); err != nil || length != 65536 || first == 0 || first%65536 != 0 {
		c.t.Fatalf("uid_map is %q (%v)", idMap, err)
	}
	if got, want := c.runsAs("54321"), fmt.Sprintf("%d:%d", first, first); got != want {
		c.t.Errorf("the process belongs to %s on the host, want %s", got, want)
	}
	if got := c.ownerOf(filepath.Join(dir, "f")); got != "1000:1000" {
		c.t.Errorf("its file belongs to %s on the host", got)
	}
	// Root does in the pod what root of a user namespace may, and nothing on the host.
	has(c.t, c.kubectl("exec", "own", "-c", "main", "--", "sh", "-c", "/bin/busybox mkdir /t && /bin/busybox mount -t tmpfs t /t && echo mounted; /bin/busybox mknod /t/x b 7 0 || echo no device; /bin/busybox ping -c 1 127.0.0.1 | /bin/busybox grep -c '1 packets received'"), "mounted\nno device\n1\n")
	has(c.t, c.kubectl("exec", "own", "-c", "side", "--", "/bin/busybox", "nc", "127.0.0.1", "80"), idMap)
	c.says("user", "uid=1000(web) gid=3000 groups=3000,4000(extra),5000\nout\n"+c.mapOf("user"))
	if c.mapOf("user") == idMap {
		c.t.Error("two pods have the same IDs")
	}
	c.is("pod/shared", readyPath, "True")
	has(c.t, c.kubectl("exec", "shared", "-c", "two", "--", "/bin/busybox", "ps", "-o", "args"), "sleep 54322")
	s := c.onTerminal(24, 80, "exec", "-it", "shared", "-c", "two", "--", "sh", "-c", "/bin/busybox stty size; /bin/busybox stat -c 'of %u:%g' $(/bin/busybox tty); read l; exit 7")
	s.says("24 80")
	s.says("of 0:5")
	s.types("\n")
	if code := s.exits(); code != 7 {
		c.t.Errorf("the command ended with %d", code)
	}
	c.kubectl("debug", "own", "--image=busybox:1", "--target=main", "-c", "look", "--quiet", "--", "sh", "-c", "cat /proc/self/uid_map; /bin/busybox ps -o args | /bin/busybox grep -c '[s]leep 54321$'; sleep 10000")
	c.eventually("an ephemeral container has the pod's IDs", func() (bool, string) {
		out, err := c.kubectlErr("logs", "own", "-c", "look")
		return err == nil && out == idMap+"1\n", out
	})
	c.says("unmasked", "writable\n0\nread-only\nmasked\n")
	c.told("nomap", "RunContainerError", `failed to set MOUNT_ATTR_IDMAP on /proc/tty: invalid argument (maybe the filesystem used doesn't support idmap mounts on this kernel?)`)
	// A restarted container has the same IDs; so has one after a restart of skiff.
	c.kubectl("exec", "own", "-c", "main", "--", "/bin/busybox", "touch", "/end")
	c.is("pod/own", ".status.containerStatuses[0].restartCount", "1")
	c.is("pod/own", ".status.containerStatuses[0].lastState.terminated.message", "bye\n")
	c.is("pod/own", readyPath, "True")
	if again := c.mapOf("own"); again != idMap {
		c.t.Errorf("after a restart uid_map is %q, was %q", again, idMap)
	}
	c.is("node", ".items[0].status.runtimeHandlers[0].features.userNamespaces", "true")
	c.kubectl("delete", "pod", "own", "--grace-period=5")
	if b, err := os.ReadFile(filepath.Join(dir, "stopped")); !strings.HasPrefix(string(b), "uid=0(root)") {
		c.t.Errorf("the preStop hook said %q, %v", b, err)
	}
	out, err := c.kubectlIn(strings.NewReader(spec("hidden", `
  containers: [{name: main, image: "busybox:1", securityContext: {procMount: Unmasked}}]
`)), "apply", "-f", "-")
	if err == nil {
		c.t.Error("procMount Unmasked is accepted without a user namespace")
	}
	has(c.t, out, "`hostUsers` must be false to use `Unmasked`")
}

// mapOf is the uid_map of a pod's main container.
func (c *cluster) mapOf(pod string) string {
	c.t.Helper()
	if pod == "user" { // it has ended
		c.is("pod/user", ".status.phase", "Succeeded")
		out := c.kubectl("logs", pod)
		return out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	}
	return c.kubectl("exec", pod, "-c", "main", "--", "cat", "/proc/self/uid_map")
}
