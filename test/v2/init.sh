#!/bin/busybox sh
# The first process of the emulated machine. The initramfs cannot be the root of
# containers (pivot_root refuses it): so everything moves to a tmpfs first.
if [ "$1" != moved ]; then
	/bin/busybox mkdir -p /proc /root-fs
	/bin/busybox mount -t tmpfs -o size=90% tmpfs /root-fs
	for f in bin lib lib64 modules tests init etc; do
		/bin/busybox cp -a /$f /root-fs/
	done
	exec /bin/busybox switch_root /root-fs /init moved
fi
export PATH=/bin HOME=/root
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /root /var/lib /usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
while read -r m; do insmod /modules/$m || echo "v2: module $m is not loaded"; done </modules/order
hostname v2
ip link set lo up
ip link set dummy0 up
ip addr add 192.0.2.2/24 dev dummy0
ip route add default via 192.0.2.1 dev dummy0
while read -r name args; do
	echo "v2: run $name"
	cd /tests
	env $(cat /tests/env) ./$name -test.v $args
	echo "v2: $name exit $?"
done </tests/list
echo "v2: end"
poweroff -f
