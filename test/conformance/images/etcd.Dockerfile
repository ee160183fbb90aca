FROM conformance/busybox:1
COPY etcd /usr/local/bin/etcd
EXPOSE 2379 2380
