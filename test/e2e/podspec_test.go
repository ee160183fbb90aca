package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// TestPodSpec: the fields of a pod, and what each does to real containers. They share
// a cluster; each part has its own namespace.
func TestPodSpec(t *testing.T) {
	c := start(t, "podspec", "--allowed-unsafe-sysctls", "net.core.*", "--max-container-restart-period", "1s")
	c.carried = true
	c.importBusybox()
	for _, s := range []struct {
		name string
		run  func(*cluster)
	}{
		{"environment", podEnvironment}, {"security", podSecurity}, {"names", podNames}, {"host", podHost},
		{"volumes", podVolumes}, {"update", podUpdate}, {"sidecars", podSidecars}, {"hooks", podHooks}, {"grpc", podGRPC},
		{"ends", podEnds}, {"conditions", podConditions}, {"refused", podRefused}, {"restartrules", podRestartRules},
		{"resources", podResources}, {"users", podUsers},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(c.within(t, s.name)) })
	}
}

// spec is a pod's manifest from what differs.
func spec(name, rest string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 0\n%s\n", name, strings.Trim(rest, "\n"))
}

// says waits until a pod's log is as wanted.
func (c *cluster) says(pod, want string) {
	c.t.Helper()
	c.eventually(pod+" speaks", func() (bool, string) {
		out, err := c.kubectlErr("logs", pod, "--all-containers")
		return err == nil && out == want, out
	})
}

// event waits for an event about a pod, "REASON MESSAGE" or the beginning of it.
func (c *cluster) event(pod, want string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("an event of %s is %q", pod, want), func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector=involvedObject.name="+pod, "-o", `jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}`)
		return strings.Contains("\n"+out, "\n"+want), out
	})
}

func podEnvironment(c *cluster) {
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {A: conf-a, B: conf-b}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {PW: hidden}
---
apiVersion: v1
kind: Service
metadata: {name: my-db}
spec: {ports: [{name: sql, port: 5432}]}
`)
	ip := c.jsonpath("service/my-db", ".spec.clusterIP")
	// The kubelet is told of the service in its own time.
	links := spec("links", `
  restartPolicy: OnFailure
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'test -n "$MY_DB_SERVICE_HOST" && echo "$MY_DB_SERVICE_HOST $MY_DB_SERVICE_PORT_SQL $MY_DB_PORT $KUBERNETES_SERVICE_PORT"']}]
`) + spec("nolinks", `
  restartPolicy: Never
  enableServiceLinks: false
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'echo "<$MY_DB_SERVICE_HOST> $KUBERNETES_SERVICE_PORT"']}]
`)
	c.apply(links + spec("env", `
  restartPolicy: Never
  serviceAccountName: default
  initContainers:
  - {name: write, image: "busybox:1", command: [sh, -c, "echo \"F='from a file' # said so\" > /work/vars"], volumeMounts: [{name: work, mountPath: /work}]}
  containers:
  - name: main
    image: busybox:1
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 1500m, memory: 64Mi}}
    envFrom:
    - {configMapRef: {name: conf}}
    - {prefix: S_, secretRef: {name: sec}}
    - {configMapRef: {name: absent, optional: true}}
    env:
    - {name: B, value: own}
    - {name: REF, value: "$(B) $(S_PW) $(NOT) $$(B)"}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['no']"}}}
    - {name: SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: conf, key: A}}}
    - {name: SKEY, valueFrom: {secretKeyRef: {name: sec, key: PW}}}
    - {name: OPT, valueFrom: {secretKeyRef: {name: sec, key: absent, optional: true}}}
    - {name: FILE, valueFrom: {fileKeyRef: {volumeName: work, path: vars, key: F}}}
    - {name: NOFILE, valueFrom: {fileKeyRef: {volumeName: work, path: vars, key: G, optional: true}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MCPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: KMEM, valueFrom: {resourceFieldRef: {resource: requests.memory, divisor: 1Ki}}}
    command: [sh, -c, 'echo "$A|$B|$S_PW|$REF|$NS|$LABEL|$SA|$KEY|$SKEY|${OPT-unset}|$FILE|${NOFILE-unset}|$CPU|$MCPU|$MEM|$KMEM|$0|$1"', "$(NS)", "$$(NS)"]
    volumeMounts: [{name: work, mountPath: /work}]
  volumes: [{name: work, emptyDir: {}}]
`) + spec("nokey", `
  containers:
  - {name: main, image: "busybox:1", env: [{name: K, valueFrom: {configMapKeyRef: {name: conf, key: Z}}}]}
`) + spec("nofile", `
  containers:
  - {name: main, image: "busybox:1", env: [{name: K, valueFrom: {fileKeyRef: {volumeName: work, path: vars, key: K}}}], volumeMounts: [{name: work, mountPath: /work}]}
  volumes: [{name: work, emptyDir: {}}]
`))
	c.says("env", "conf-a|own|hidden|own hidden $(NOT) $(B)|environment||default|conf-a|hidden|unset|from a file|unset|2|100|64|16384|environment|$(NS)\n")
	c.says("links", ip+" 5432 tcp://"+ip+":5432 443\n")
	c.says("nolinks", "<> 443\n")
	c.told("nokey", "CreateContainerConfigError", "couldn't find key Z in ConfigMap environment/conf")
	c.told("nofile", "CreateContainerConfigError", "Error: couldn't parse env file")
}

func podSecurity(c *cluster) {
	const dir = "/var/lib/kubelet/seccomp"
	made, err := os.MkdirTemp(mkdirs(c.t, dir), "e2e-")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.RemoveAll(made) })
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`
	if err := os.WriteFile(made+"/nomkdir.json", []byte(profile), 0o644); err != nil {
		c.t.Fatal(err)
	}
	status := func(fields string) string {
		return `[sh, -c, 'for f in ` + fields + `; do while read -r k v; do [ "$k" = "$f:" ] && echo $k $v; done < /proc/self/status; done; true']`
	}
	c.apply(spec("users", `
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [5000]}
  containers:
  - {name: merged, image: "busybox:1", command: [id]}
  - {name: own, image: "busybox:1", command: [id], securityContext: {runAsUser: 7, runAsGroup: 8}}
`) + spec("strict", `
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [5000], supplementalGroupsPolicy: Strict}
  containers: [{name: main, image: "busybox:1", command: [id]}]
`) + spec("plain", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: `+status("CapEff CapBnd NoNewPrivs Seccomp")+`}]
`) + spec("caps", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: `+status("CapEff CapBnd NoNewPrivs Seccomp")+`, securityContext: {allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}}]
`) + spec("all", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'test -c /dev/kmsg && echo devices; echo renamed > /proc/sys/kernel/hostname; cat /proc/sys/kernel/hostname'], securityContext: {privileged: true}}]
`) + spec("readonly", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'touch /x; touch /tmp/x && echo fine; for f in sysrq-trigger sys/kernel/hostname; do (: >> /proc/$f) 2>/dev/null && echo bad; done; test -s /proc/kcore && echo bad; true'], securityContext: {readOnlyRootFilesystem: true}, volumeMounts: [{name: t, mountPath: /tmp}]}]
  volumes: [{name: t, emptyDir: {}}]
`) + spec("local", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, '/bin/busybox mkdir /tmp/d'], securityContext: {seccompProfile: {type: Localhost, localhostProfile: `+filepath.Base(made)+`/nomkdir.json}}}]
`) + spec("noprofile", `
  containers: [{name: main, image: "busybox:1", securityContext: {seccompProfile: {type: Localhost, localhostProfile: nosuch.json}}}]
`) + spec("notroot", `
  containers: [{name: main, image: "busybox:1", securityContext: {runAsNonRoot: true}}]
`))
	c.is("pod/users", ".status.phase", "Succeeded")
	for name, want := range map[string]string{"merged": "uid=1000(web) gid=3000 groups=2000,3000,4000(extra),5000\n", "own": "uid=7 gid=8 groups=8,2000,5000\n"} {
		if out := c.kubectl("logs", "users", "-c", name); out != want {
			c.t.Errorf("container %s is %q, want %q", name, out, want)
		}
	}
	c.says("strict", "uid=1000(web) gid=3000 groups=3000,5000\n")
	c.says("plain", "CapEff: 00000000a80425fb\nCapBnd: 00000000a80425fb\nNoNewPrivs: 0\nSeccomp: 0\n")
	c.says("caps", "CapEff: 0000000000000400\nCapBnd: 0000000000000400\nNoNewPrivs: 1\nSeccomp: 2\n")
	c.says("all", "devices\nrenamed\n")
	c.says("readonly", "touch: /x: Read-only file system\nfine\n")
	c.says("local", "mkdir: can't create directory '/tmp/d': Operation not supported\n")
	c.eventually("the missing profile is told", func() (bool, string) {
		out := c.jsonpath("pod/noprofile", ".status.containerStatuses[0].state")
		return strings.Contains(out, "CreateContainerError") && strings.Contains(out, dir+"/nosuch.json"), out
	})
	c.told("notroot", "CreateContainerConfigError", `Error: container has runAsNonRoot and image will run as root (pod: "notroot_security(`)
	c.is("pod/users", ".status.containerStatuses[0].user.linux", `{"gid":3000,"supplementalGroups":[3000,4000,2000,5000],"uid":1000}`)
}

// mkdirs makes a directory and has what was not there before removed again.
func mkdirs(t *testing.T, dir string) string {
	t.Helper()
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		}
		t.Cleanup(func() { _ = os.Remove(d) })
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func podNames(c *cluster) {
	long := strings.Repeat("n", 40)
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: sub}
spec: {clusterIP: None, selector: {in: sub}, ports: [{port: 80}]}
` + strings.Replace(spec("named", `
  restartPolicy: Never
  hostname: web-1
  subdomain: sub
  hostAliases: [{ip: 192.0.2.7, hostnames: [alias, alias.example]}]
  dnsConfig: {nameservers: [192.0.2.53], searches: [more.example], options: [{name: ndots, value: "2"}, {name: debug}]}
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'hostname; /bin/busybox hostname -f; /bin/busybox grep -A9 HostAliases /etc/hosts; cat /etc/resolv.conf']}]
`), "{name: named}", "{name: named, labels: {in: sub}}", 1) + spec("fqdn", `
  restartPolicy: Never
  hostname: web-2
  subdomain: sub
  setHostnameAsFQDN: true
  containers: [{name: main, image: "busybox:1", command: [hostname]}]
`) + spec("override", `
  restartPolicy: Never
  hostnameOverride: any.name.example
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'hostname; /bin/busybox tail -n1 /etc/hosts']}]
`) + spec(long, `
  subdomain: sub
  setHostnameAsFQDN: true
  containers: [{name: main, image: "busybox:1"}]
`) + spec("nodns", `
  restartPolicy: Never
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53]}
  containers: [{name: main, image: "busybox:1", command: [cat, /etc/resolv.conf]}]
`) + spec("hostdns", `
  restartPolicy: Never
  dnsPolicy: Default
  containers: [{name: main, image: "busybox:1", command: [/bin/busybox, grep, nameserver, /etc/resolv.conf]}]
`))
	c.eventually("the pod with names speaks", func() (bool, string) {
		out, err := c.kubectlErr("logs", "named")
		return err == nil && strings.Contains(out, "options "), out
	})
	out := c.kubectl("logs", "named")
	has(c.t, out, "web-1\nweb-1.sub.names.svc.cluster.local\n# Entries added by HostAliases.\n192.0.2.7\talias\talias.example\n", "nameserver 192.0.2.53\n")
	if !regexp.MustCompile(`(?m)^search names\.svc\.cluster\.local svc\.cluster\.local cluster\.local .*\bmore\.example$`).MatchString(out) || !regexp.MustCompile(`(?m)^options ndots:2 debug$`).MatchString(out) {
		c.t.Errorf("resolver configuration is %s", out)
	}
	c.says("fqdn", "web-2.sub.names.svc.cluster.local\n")
	c.says("override", "any.name.example\n"+c.jsonpath("pod/override", ".status.podIP")+"\tany.name.example\n")
	full := long + ".sub.names.svc.cluster.local"
	c.event(long, fmt.Sprintf("FailedCreatePodSandBox Failed to create pod sandbox: failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", full, len(full)))
	c.says("nodns", "nameserver 192.0.2.53\n")
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		c.t.Fatal(err)
	}
	c.says("hostdns", strings.Join(regexp.MustCompile(`(?m)^nameserver.*\n`).FindAllString(string(host), 3), ""))
}

func podHost(c *cluster) {
	ns := func(kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			c.t.Fatal(err)
		}
		return link
	}
	c.apply(spec("host", `
  restartPolicy: Never
  hostNetwork: true
  hostPID: true
  hostIPC: true
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'for n in net pid ipc mnt; do /bin/busybox readlink /proc/self/ns/$n; done']}]
`) + spec("own", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'for n in net pid ipc uts; do /bin/busybox readlink /proc/self/ns/$n; done; echo $$$$']}]
`) + spec("shared", `
  shareProcessNamespace: true
  securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: "40000 50000"}, {name: kernel.shm_rmid_forced, value: "1"}, {name: net.core.somaxconn, value: "123"}]}
  containers:
  - {name: one, image: "busybox:1", command: [sleep, "4242"]}
  - {name: two, image: "busybox:1", command: [sh, -c, 'cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn; exec sleep 10000']}
`))
	c.is("pod/host", ".status.phase", "Succeeded")
	out := c.kubectl("logs", "host")
	has(c.t, out, ns("net")+"\n"+ns("pid")+"\n"+ns("ipc")+"\nmnt:")
	if strings.Contains(out, ns("mnt")) {
		c.t.Error("the pod shares the host's mounts")
	}
	c.is("pod/own", ".status.phase", "Succeeded")
	out = c.kubectl("logs", "own")
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		if strings.Contains(out, ns(kind)) {
			c.t.Errorf("the pod shares the host's %s", kind)
		}
	}
	has(c.t, out, "]\n1\n")
	c.is("pod/host", ".status.podIP", c.jsonpath("pod/host", ".status.hostIP"))
	c.is("pod/shared", readyPath, "True")
	if out := c.kubectl("logs", "shared", "-c", "two"); out != "40000\t50000\n1\n123\n" {
		c.t.Errorf("sysctls are %q", out)
	}
	has(c.t, c.kubectl("exec", "shared", "-c", "two", "--", "/bin/busybox", "ps", "-o", "args"), "sleep 4242")
}

func podVolumes(c *cluster) {
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: conf-a, b: conf-b}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {s: hidden}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: never}
immutable: true
---
apiVersion: certificates.k8s.io/v1
kind: ClusterTrustBundle
metadata: {name: volumes-` + strings.ToLower(c.name) + `}
spec: {trustBundle: "` + strings.ReplaceAll(strings.TrimSpace(c.jsonpathWait("configmap/kube-root-ca.crt", `.data.ca\.crt`)), "\n", `\n`) + `"}
` + strings.Replace(spec("all", `
  restartPolicy: Never
  securityContext: {fsGroup: 2000}
  containers:
  - name: main
    image: busybox:1
    resources: {limits: {memory: 64Mi}}
    command: [sh, -c, 'cd /all; cat conf/a; echo; cat s; echo; cat down/name; echo; cat down/limit; echo; test $(cat token | /bin/busybox tr -cd . | /bin/busybox wc -c) = 2 && echo token; /bin/busybox head -n1 bundle; test -e conf/b || echo no b; /bin/busybox stat -L -c "%a %g" conf/a s; touch x']
    volumeMounts: [{name: all, mountPath: /all}]
  volumes:
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - configMap: {name: conf, items: [{key: a, path: conf/a, mode: 0400}]}
      - secret: {name: sec}
      - secret: {name: absent, optional: true}
      - downwardAPI: {items: [{path: down/name, fieldRef: {fieldPath: metadata.name}}, {path: down/limit, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}]}
      - serviceAccountToken: {path: token, audience: somebody, expirationSeconds: 600}
      - clusterTrustBundle: {name: volumes-`+strings.ToLower(c.name)+`, path: bundle}
`), "{name: all}", "{name: all, labels: {a: b}}", 1) + spec("memory", `
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, '/bin/busybox dd if=/dev/zero of=/mem/x bs=1M count=3 2>&1 | /bin/busybox grep -o "No space left on device"; /bin/busybox grep " /mem " /proc/mounts | /bin/busybox cut -d" " -f3; /bin/busybox stat -c %a /disk']
    volumeMounts: [{name: mem, mountPath: /mem}, {name: disk, mountPath: /disk}]
  volumes: [{name: mem, emptyDir: {medium: Memory, sizeLimit: 2Mi}}, {name: disk, emptyDir: {}}]
`) + spec("sub", `
  restartPolicy: Never
  initContainers:
  - {name: write, image: "busybox:1", command: [sh, -c, 'echo here > /w/sub/f'], env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], volumeMounts: [{name: w, mountPath: /w/sub, subPathExpr: "of-$(POD)/x"}]}
  containers:
  - {name: main, image: "busybox:1", command: [sh, -c, 'cat /w/of-sub/x/f /f; cat /conf; test -d /conf.d/a || echo file'], volumeMounts: [{name: w, mountPath: /w}, {name: w, mountPath: /f, subPath: of-sub/x/f}, {name: conf, mountPath: /conf, subPath: b}, {name: conf, mountPath: /conf.d}]}
  volumes: [{name: w, emptyDir: {}}, {name: conf, configMap: {name: conf}}]
`) + spec("noexpr", `
  containers: [{name: main, image: "busybox:1", volumeMounts: [{name: w, mountPath: /w, subPathExpr: $(NOT)}]}]
  volumes: [{name: w, emptyDir: {}}]
`) + spec("dots", `
  containers: [{name: main, image: "busybox:1", env: [{name: UP, value: ..}], volumeMounts: [{name: w, mountPath: /w, subPathExpr: $(UP)}]}]
  volumes: [{name: w, emptyDir: {}}]
`) + spec("image", `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, '/bin/busybox tail -n1 /image/etc/passwd; /bin/busybox tail -n1 /passwd/passwd; touch /image/x; /image/bin/true'], volumeMounts: [{name: img, mountPath: /image}, {name: img, mountPath: /passwd, subPath: etc}]}]
  volumes: [{name: img, image: {reference: "busybox:1", pullPolicy: IfNotPresent}}]
`) + spec("noimage", `
  containers: [{name: main, image: "busybox:1", volumeMounts: [{name: img, mountPath: /image}]}]
  volumes: [{name: img, image: {reference: "busybox:nosuch", pullPolicy: Never}}]
`))
	c.says("all", "conf-a\nhidden\nall\n64\ntoken\n-----BEGIN CERTIFICATE-----\nno b\n440 2000\n440 2000\ntouch: x: Read-only file system\n")
	c.says("memory", "No space left on device\ntmpfs\n777\n")
	c.says("sub", "here\nhere\nconf-bfile\n")
	c.told("noexpr", "CreateContainerConfigError", `Error: missing value for "NOT"`)
	c.told("dots", "CreateContainerConfigError", "Error: unable to provision SubPath `..`: must not contain '..'")
	c.says("image", "web:x:1000:1000::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\ntouch: /image/x: Read-only file system\nsh: /image/bin/true: Permission denied\n")
	c.told("noimage", "ErrImageNeverPull", `Container image "busybox:nosuch" is not present with pull policy of Never`)
	c.kubectl("delete", "clustertrustbundle", "volumes-"+strings.ToLower(c.name))
	// fsGroupChangePolicy: what stands below a root that is as it should be stays.
	c.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
` + spec("first", `
  restartPolicy: Never
  securityContext: {fsGroup: 2000}
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'echo > /d/f; /bin/busybox chgrp 0 /d/f; /bin/busybox stat -c %g /d /d/f'], volumeMounts: [{name: d, mountPath: /d}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]
`))
	c.says("first", "2000\n0\n")
	again := func(name, policy, want string) {
		c.t.Helper()
		c.apply(spec(name, `
  restartPolicy: Never
  securityContext: {fsGroup: 2000, fsGroupChangePolicy: `+policy+`}
  containers: [{name: main, image: "busybox:1", command: [/bin/busybox, stat, -c, "%g", /d/f], volumeMounts: [{name: d, mountPath: /d}]}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]
`))
		c.says(name, want)
	}
	again("mismatch", "OnRootMismatch", "0\n")
	again("always", "Always", "2000\n")
}

// podUpdate: what is mounted follows its objects.
func podUpdate(c *cluster) {
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: "1"}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {s: "1"}
` + spec("box", `
  containers:
  - name: main
    image: busybox:1
    command: [sleep, "10000"]
    volumeMounts: [{name: conf, mountPath: /conf}, {name: sec, mountPath: /sec}, {name: down, mountPath: /down}, {name: conf, mountPath: /sub, subPath: a}, {name: all, mountPath: /all}]
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: sec, secret: {secretName: sec}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: all, projected: {sources: [{configMap: {name: conf}}, {secret: {name: sec}}]}}
`))
	c.is("pod/box", readyPath, "True")
	c.kubectl("patch", "configmap", "conf", "--type=merge", "-p", `{"data":{"a":"2","b":"new"}}`)
	c.kubectl("patch", "secret", "sec", "--type=merge", "-p", `{"stringData":{"s":"2"}}`)
	c.kubectl("label", "pod", "box", "x=y")
	read := `cat /conf/a /conf/b /sec/s /down/labels /all/a /all/b /all/s /sub 2>&1`
	c.eventually("the pod sees what is new", func() (bool, string) {
		out, _ := c.kubectlErr("exec", "box", "--", "sh", "-c", read)
		return out == `2new2x="y"2new21`, out // what is mounted as a subPath stays
	})
	c.kubectl("patch", "configmap", "conf", "--type=merge", "-p", `{"data":{"b":null}}`)
	c.eventually("what is gone goes", func() (bool, string) {
		out, _ := c.kubectlErr("exec", "box", "--", "ls", "/conf")
		return out == "a\n", out
	})
	// An object that is deleted takes nothing away from a pod that runs.
	c.kubectl("delete", "configmap", "conf")
	c.kubectl("label", "pod", "box", "x=z", "--overwrite")
	c.event("box", `FailedMount MountVolume.SetUp failed for volume "conf" : configmap "conf" not found`)
	if out := c.kubectl("exec", "box", "--", "cat", "/conf/a"); out != "2" {
		c.t.Errorf("/conf/a is %q after the deletion", out)
	}
}

func podSidecars(c *cluster) {
	// Each writes down when it begins and ends.
	line := func(name, more string) string {
		return fmt.Sprintf(`{name: %s, image: "busybox:1", volumeMounts: [{name: w, mountPath: /w}], command: [sh, -c, 'trap "echo %s ends >> /w/log; exit 0" TERM; echo %s begins >> /w/log; touch /tmp/up; while :; do sleep 0.05; done'], %s}`, name, name, name, more)
	}
	log := filepath.Join(c.t.TempDir(), "w")
	c.apply(strings.Replace(spec("app", `
  initContainers:
  - `+line("one", `restartPolicy: Always, startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1}, lifecycle: {preStop: {exec: {command: [sh, -c, "echo one was told >> /w/log"]}}}`)+`
  - {name: init, image: "busybox:1", volumeMounts: [{name: w, mountPath: /w}], command: [sh, -c, 'echo init >> /w/log']}
  - `+line("two", `restartPolicy: Always, readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}`)+`
  containers:
  - `+line("main", `lifecycle: {preStop: {exec: {command: [sh, -c, "echo main was told >> /w/log; sleep 1"]}}}`)+`
  volumes: [{name: w, hostPath: {path: `+log+`, type: DirectoryOrCreate}}]
`), "GracePeriodSeconds: 0", "GracePeriodSeconds: 20", 1) + spec("job", `
  restartPolicy: Never
  initContainers: [{name: side, image: "busybox:1", restartPolicy: Always, command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.05; done']}]
  containers: [{name: main, image: "busybox:1", command: ["true"]}]
`))
	c.eventually("main runs", func() (bool, string) {
		out := c.jsonpath("pod/app", ".status.containerStatuses[0].state")
		return strings.Contains(out, "running"), out
	})
	c.eventually("the sidecar that is not ready keeps the pod from being so", func() (bool, string) {
		out := c.jsonpath("pod/app", `.status.conditions[?(@.type=="Ready")].message`)
		return out == "containers with unready status: [two]", out
	})
	c.kubectl("exec", "app", "-c", "two", "--", "touch", "/tmp/ready")
	c.is("pod/app", readyPath, "True")
	// A sidecar that ends is started again, in a Job's pod too, which ends with main.
	c.kubectl("exec", "app", "-c", "two", "--", "kill", "1")
	c.is("pod/app", ".status.initContainerStatuses[2].restartCount", "1")
	c.is("pod/job", ".status.phase", "Succeeded")
	c.is("pod/job", ".status.initContainerStatuses[0].state.terminated.exitCode", "0")
	c.kubectl("delete", "pod", "app")
	b, err := os.ReadFile(filepath.Join(log, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	got := strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", ")
	// preStop hooks all run at once; then main ends, and the sidecars in reverse.
	told := regexp.MustCompile(`(one|main) was told, `)
	if n := len(told.FindAllString(got, -1)); n != 2 {
		c.t.Errorf("%d were told: %s", n, got)
	}
	const want = "one begins, init, two begins, main begins, two ends, two begins, main ends, two ends, one ends"
	if got := told.ReplaceAllString(got, ""); got != want {
		c.t.Errorf("it went %q, want %q", got, want)
	}
}

func podHooks(c *cluster) {
	dir := c.t.TempDir()
	volume := `
  volumes: [{name: w, hostPath: {path: ` + dir + `}}]`
	pod := func(name, grace, lifecycle string) string {
		return strings.Replace(spec(name, `
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.05; done'], volumeMounts: [{name: w, mountPath: /w}], lifecycle: {`+lifecycle+`}}]`+volume), "Seconds: 0", "Seconds: "+grace, 1)
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		c.t.Fatal(err)
	}
	defer l.Close()
	requests := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1024)
			n, _ := conn.Read(buf)
			requests <- string(buf[:n])
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			conn.Close()
		}
	}()
	node := c.jsonpath("nodes", `.items[0].status.addresses[?(@.type=="InternalIP")].address`)
	port := l.Addr().(*net.TCPAddr).Port
	http := func(path string) string {
		return fmt.Sprintf(`{httpGet: {host: "%s", port: %d, path: %s, httpHeaders: [{name: X-Who, value: hook}]}}`, node, port, path)
	}
	c.apply(pod("good", "30", `postStart: {exec: {command: [sh, -c, 'echo post >> /w/good']}}, preStop: {exec: {command: [sh, -c, 'echo pre >> /w/good']}}`) +
		pod("http", "30", `postStart: `+http("/post")+`, preStop: `+http("/pre")) +
		pod("sleep", "30", `preStop: {sleep: {seconds: 2}}`) +
		pod("short", "1", `preStop: {sleep: {seconds: 1}}`) +
		pod("badpost", "0", `postStart: {exec: {command: [sh, -c, 'echo no luck; exit 3']}}`) +
		pod("badpre", "30", `preStop: {exec: {command: [/nosuch]}}`))
	for _, p := range []string{"good", "http", "sleep", "short", "badpre"} {
		c.is("pod/"+p, readyPath, "True")
	}
	has(c.t, <-requests, "GET /post HTTP/1.1\r\n", "User-Agent: kube-lifecycle/1.37\r\n", "X-Who: hook\r\n", "Accept: */*\r\n")
	begun := time.Now()
	c.kubectl("delete", "pod", "sleep", "short")
	if took := time.Since(begun); took < 2*time.Second || took > 20*time.Second {
		c.t.Errorf("with a preStop of 2 s the pod took %v to end", took)
	}
	c.kubectl("delete", "pod", "good", "http", "badpre")
	if b, err := os.ReadFile(filepath.Join(dir, "good")); string(b) != "post\npre\n" {
		c.t.Errorf("the hooks wrote %q, %v", b, err)
	}
	has(c.t, <-requests, "GET /pre HTTP/1.1\r\n")
	c.event("badpost", "FailedPostStartHook PostStartHook failed")
	c.event("badpost", "Killing FailedPostStartHook")
	c.event("badpre", "FailedPreStopHook PreStopHook failed")
	c.is("pod/badpost", ".status.phase", "Succeeded") // it was told to end, and did so well
}

// podGRPC: the kubelet asks this test, by the address of a pod on the host's network.
func podGRPC(c *cluster) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		c.t.Fatal(err)
	}
	h := health.NewServer()
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, h)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	}()
	h.SetServingStatus("ready", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	port := l.Addr().(*net.TCPAddr).Port
	c.apply(spec("asked", fmt.Sprintf(`
  hostNetwork: true
  containers:
  - name: main
    image: busybox:1
    command: [sleep, "10000"]
    livenessProbe: {grpc: {port: %d}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {grpc: {port: %d, service: ready}, periodSeconds: 1, failureThreshold: 1}
`, port, port)) + spec("unknown", fmt.Sprintf(`
  hostNetwork: true
  containers: [{name: main, image: "busybox:1", command: [sleep, "10000"], readinessProbe: {grpc: {port: %d, service: nosuch}, periodSeconds: 1}}]
`, port)))
	c.event("asked", `Unhealthy Readiness probe failed: service unhealthy (responded with "NOT_SERVING")`)
	c.event("unknown", "Unhealthy Readiness probe failed: error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")
	h.SetServingStatus("ready", grpc_health_v1.HealthCheckResponse_SERVING)
	c.is("pod/asked", readyPath, "True")
	h.SetServingStatus("ready", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	c.is("pod/asked", readyPath, "False")
	if n := c.jsonpath("pod/asked", ".status.containerStatuses[0].restartCount"); n != "0" {
		c.t.Errorf("readiness restarted it %s times", n)
	}
	h.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	c.is("pod/asked", ".status.containerStatuses[0].restartCount", "1")
	c.event("asked", "Killing Container main failed liveness probe, will be restarted")
}

func podEnds(c *cluster) {
	c.apply(spec("message", `
  restartPolicy: Never
  containers:
  - {name: file, image: "busybox:1", command: [sh, -c, 'echo -n for the record > /out/why; exit 4'], terminationMessagePath: /out/why}
  - {name: logs, image: "busybox:1", command: [sh, -c, 'echo the last words; exit 5'], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: well, image: "busybox:1", command: [sh, -c, 'echo nothing to tell'], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: long, image: "busybox:1", command: [sh, -c, '/bin/busybox dd if=/dev/zero bs=8192 count=1 2>/dev/null | /bin/busybox tr "\0" x > /dev/termination-log']}
`) + spec("late", `
  activeDeadlineSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sleep, "10000"]}]
`) + spec("crash", `
  containers: [{name: main, image: "busybox:1", command: ["false"]}]
`))
	c.event("crash", "BackOff Back-off restarting failed container main in pod crash_ends(")
	c.eventually("it is restarted after a second each time", func() (bool, string) {
		out := c.jsonpath("pod/crash", ".status.containerStatuses[0]")
		return regexp.MustCompile(`"restartCount":[3-9]`).MatchString(out) && strings.Contains(out, "back-off 1s restarting failed container=main pod=crash_ends("), out
	})
	c.is("pod/message", ".status.phase", "Failed")
	state := func(i int) string {
		return c.jsonpath("pod/message", fmt.Sprintf(`.status.containerStatuses[?(@.name=="%s")].state.terminated`, []string{"file", "logs", "well"}[i]))
	}
	has(c.t, state(0), `"exitCode":4`, `"reason":"Error"`, `"message":"for the record"`)
	has(c.t, state(1), `"exitCode":5`, `"message":"the last words\n"`)
	has(c.t, state(2), `"exitCode":0`, `"reason":"Completed"`)
	if strings.Contains(state(2), "message") {
		c.t.Errorf("it ended well and has a message: %s", state(2))
	}
	if got := c.jsonpath("pod/message", `.status.containerStatuses[?(@.name=="long")].state.terminated.message`); got != strings.Repeat("x", 4096) {
		c.t.Errorf("a message of 8192 bytes arrives with %d", len(got))
	}
	c.is("pod/late", ".status.phase", "Failed")
	if got := c.jsonpath("pod/late", ".status.reason") + ": " + c.jsonpath("pod/late", ".status.message"); got != "DeadlineExceeded: Pod was active on the node longer than the specified deadline" {
		c.t.Errorf("status says %q", got)
	}
	c.event("late", "DeadlineExceeded Pod was active on the node longer than the specified deadline")
}

func podConditions(c *cluster) {
	c.apply(spec("gate", `
  readinessGates: [{conditionType: example.com/lb}]
  containers: [{name: main, image: "busybox:1", command: [sleep, "10000"]}]
`))
	const path = `{range .status.conditions[*]}{.type}={.status}/{.observedGeneration} {end}`
	c.is("pod/gate", `.status.conditions[?(@.type=="Ready")].message`, `corresponding condition of pod readiness gate "example.com/lb" does not exist.`)
	conditions := func(want string) {
		c.t.Helper()
		c.eventually("conditions are "+want, func() (bool, string) {
			have := strings.Fields(c.kubectl("get", "pod", "gate", "-o", "jsonpath="+path))
			slices.Sort(have)
			return strings.Join(have, " ") == want, fmt.Sprint(have)
		})
	}
	conditions("ContainersReady=True/1 Initialized=True/1 PodReadyToStartContainers=True/1 PodScheduled=True/1 Ready=False/1")
	c.kubectl("patch", "pod", "gate", "--subresource=status", "-p", `{"status":{"conditions":[{"type":"example.com/lb","status":"True"}]}}`)
	conditions("ContainersReady=True/1 Initialized=True/1 PodReadyToStartContainers=True/1 PodScheduled=True/1 Ready=True/1 example.com/lb=True/")
	c.kubectl("patch", "pod", "gate", "-p", `{"spec":{"activeDeadlineSeconds":1000}}`)
	c.is("pod/gate", ".status.observedGeneration", "2")
	conditions("ContainersReady=True/2 Initialized=True/2 PodReadyToStartContainers=True/2 PodScheduled=True/2 Ready=True/2 example.com/lb=True/")
}

func podRefused(c *cluster) {
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	c.apply(spec("sysctl", `
  securityContext: {sysctls: [{name: kernel.msgmax, value: "100"}]}
  containers: [{name: main, image: "busybox:1"}]
`) + spec("elsewhere", `
  nodeName: `+node+`
  nodeSelector: {disk: tape}
  containers: [{name: main, image: "busybox:1"}]
`))
	refused := func(pod, reason, message string) {
		c.t.Helper()
		c.is("pod/"+pod, ".status.reason", reason)
		if got := c.jsonpath("pod/"+pod, ".status.phase") + " " + c.jsonpath("pod/"+pod, ".status.message"); got != "Failed Pod was rejected: "+message {
			c.t.Errorf("%s says %q", pod, got)
		}
		c.event(pod, reason+" "+message)
	}
	refused("sysctl", "SysctlForbidden", `forbidden sysctl: "kernel.msgmax" not allowlisted`)
	refused("elsewhere", "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		c.apply(spec("apparmor", "  securityContext: {appArmorProfile: {type: RuntimeDefault}}\n  containers: [{name: main, image: \"busybox:1\"}]"))
		refused("apparmor", "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
	}
	// A label that is newer than what the kubelet last saw of its node counts.
	c.kubectl("label", "node", node, "disk=tape")
	c.apply(spec("here", "  nodeSelector: {disk: tape}\n  containers: [{name: main, image: \"busybox:1\", command: [sleep, \"10000\"]}]"))
	c.is("pod/here", readyPath, "True")
	c.kubectl("label", "node", node, "disk-")
}

func podRestartRules(c *cluster) {
	mount := `volumeMounts: [{name: w, mountPath: /w}]`
	volume := "\n  volumes: [{name: w, emptyDir: {}}]"
	c.apply(spec("rules", `
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    command: [sh, -c, 'if test -e /w/x; then exit 7; fi; touch /w/x; exit 42']
    `+mount+volume) + spec("train", `
  restartPolicy: Never
  initContainers:
  - {name: init, image: "busybox:1", command: [sh, -c, 'echo init >> /w/log'], `+mount+`}
  containers:
  - {name: other, image: "busybox:1", command: [sh, -c, 'echo other >> /w/log; exec sleep 10000'], `+mount+`}
  - name: main
    image: busybox:1
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
    command: [sh, -c, 'while ! test -e /w/go; do sleep 0.05; done; rm /w/go; exit 88']
    `+mount+volume))
	c.is("pod/rules", ".status.phase", "Failed")
	if got := c.jsonpath("pod/rules", ".status.containerStatuses[0].restartCount") + " " + c.jsonpath("pod/rules", ".status.containerStatuses[0].state.terminated.exitCode"); got != "1 7" {
		c.t.Errorf("restarts and exit code are %s", got)
	}
	c.is("pod/train", readyPath, "True")
	c.is("pod/train", `.status.conditions[?(@.type=="AllContainersRestarting")].status`, "False")
	ip := c.jsonpath("pod/train", ".status.podIP")
	seen := c.background("get", "pod", "train", "-w", "-o", `jsonpath={.status.conditions[?(@.type=="AllContainersRestarting")]}{"\n"}`)
	seen.says("\n")
	c.kubectl("exec", "train", "-c", "other", "--", "touch", "/w/go")
	for i := range 2 {
		c.is("pod/train", fmt.Sprintf(".status.containerStatuses[%d].restartCount", i), "1")
		c.is("pod/train", fmt.Sprintf(".status.containerStatuses[%d].lastState.terminated.reason", i), "RestartingAllContainers")
	}
	c.is("pod/train", readyPath, "True")
	c.is("pod/train", ".status.podIP", ip)
	c.is("pod/train", ".status.initContainerStatuses[0].restartCount", "1")
	c.is("pod/train", `.status.conditions[?(@.type=="AllContainersRestarting")].status`, "False")
	if out := c.kubectl("exec", "train", "-c", "other", "--", "cat", "/w/log"); out != "init\nother\ninit\nother\n" {
		c.t.Errorf("it ran %q", out)
	}
	c.event("train", "Killing killing")
}

func podResources(c *cluster) {
	g := findCgroups(c.t)
	c.apply(spec("whole", `
  resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}
  containers:
  - {name: main, image: "busybox:1", command: [sleep, "10000"], env: [{name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]}
  - {name: other, image: "busybox:1", command: [sleep, "10000"], resources: {limits: {memory: 16Mi}, requests: {memory: 16Mi}}}
`))
	c.is("pod/whole", readyPath, "True")
	c.is("pod/whole", ".status.qosClass", "Burstable")
	c.is("pod/whole", ".status.resources", `{"limits":{"cpu":"500m","memory":"64Mi"},"requests":{"cpu":"250m","memory":"32Mi"}}`)
	uid := c.jsonpath("pod/whole", ".metadata.uid")
	g.has(c.t, "/skiff-"+c.name+"/kubepods/burstable/pod"+uid, []string{"memory.limit_in_bytes 67108864", "cpu.cfs_quota_us 50000", "cpu.shares 256"}, []string{"memory.max 67108864", "cpu.max 50000 100000"})
	if out := c.kubectl("exec", "whole", "-c", "main", "--", "sh", "-c", "echo $MEM"); out != "64\n" {
		c.t.Errorf("a container without a limit is told %q", out)
	}
}
