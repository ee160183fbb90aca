# The first process of a node's namespaces.
set -eu
mount --make-rprivate /
mount -t proc proc /proc
# What programs have in places that are the same for all.
mkdir -p {{.Dir}}/node/lib {{.Dir}}/node/log
mount --bind {{.Dir}}/node/lib /var/lib
mount --bind {{.Dir}}/node/log /var/log
mount -t tmpfs tmpfs /run
# A kubelet sets these; here it sets copies.
for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes net/ipv4/ip_forward; do
	cp /proc/sys/$f {{.Dir}}/node/setting
	mv {{.Dir}}/node/setting "{{.Dir}}/node/$(echo $f | tr / .)"
	mount --bind "{{.Dir}}/node/$(echo $f | tr / .)" /proc/sys/$f
done
mount --make-rshared /
for d in /sys/fs/cgroup/*/; do
	[ -e "$d/cgroup.procs" ] && mkdir -p "$d/{{.CgroupRoot}}"
done
if [ -e /sys/fs/cgroup/cgroup.procs ]; then mkdir -p /sys/fs/cgroup/{{.CgroupRoot}}; fi
for d in /sys/fs/cgroup/cpuset/{{.CgroupRoot}}; do
	[ -d $d ] || continue
	cat ${d%/*}/cpuset.cpus >$d/cpuset.cpus
	cat ${d%/*}/cpuset.mems >$d/cpuset.mems
done
trap 'exit 0' TERM
export PATH={{.Bin}}:$PATH
containerd --config {{.Dir}}/node/containerd.toml >{{.Dir}}/containerd.log 2>&1 &
for _ in $(seq 300); do
	ctr --address {{.Dir}}/c.sock version >/dev/null 2>&1 && break
	sleep 0.1
done
ctr --address {{.Dir}}/c.sock --namespace k8s.io images import {{.Images}}
kubelet --config {{.Dir}}/node/kubelet.yaml --kubeconfig {{.Dir}}/kubelet.kubeconfig --hostname-override {{.Name}} \
	--root-dir /var/lib/kubelet >{{.Dir}}/kubelet.log 2>&1 &
wait -n
