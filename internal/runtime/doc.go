// Package runtime is skiff's container runtime: the CRI v1 services, called in
// process by the kubelet and served on a socket for others.
//
// A pod is a resident process, skiff-pod (package pod): it holds the pod's
// network, IPC and UTS namespaces (and one for processes, where the pod shares
// it), parents the containers, writes their logs and keeps how they ended. A
// container is made by a one-shot program, skiff-start, and belongs to skiff-pod
// from then on. Nothing that runs depends on this package's process: it may be
// killed at any moment, and the next one adopts what is there.
//
// # On the host
//
//	<run>/runtime/pods/<sandbox>/          0700, one directory per pod
//	    sandbox.json                       its record: config, phase, addresses
//	    lock, pod.sock                     skiff-pod: alive while the lock is held
//	    <container>.exit                   how a container ended, by skiff-pod
//	    state/<container>/                 libcontainer's state, for exec
//	    containers/<container>/            container.json (its record), spec.json,
//	                                       started (a start was asked for),
//	                                       process.json (user and so on, resolved)
//	<data>/runtime/kept/<sandbox>/         the records once more, of containers that keep
//	                                       what they write for the next one (kept.go)
//	<data>/runtime/held/<container>.json   what it wrote is held for a pod (hold.go)
//	<run>/runtime/filters/                 compiled seccomp filters, kept for speed
//	<run>/runtime/mnt/                     a private tmpfs, mounted once
//	    shm-<sandbox>/                     the pod's /dev/shm, a tmpfs of 64 MiB
//	    rootfs-<container>/                empty here: the overlay is mounted over
//	                                       it in the container's mount namespace
//	cgroup <parent>/pod-processes          all skiff-pod processes
//	cgroup <the kubelet's>/<container>     a container
//
// A pod may have a user namespace of its own (users.go). The pod process is not in
// it, since it starts what only the host's root may, but the pod's other namespaces
// belong to it, and it is found by a descriptor of that process.
//
// A root file system is never mounted in the host's mount namespace: it goes
// with the container's last process, whoever lives or dies. The records need to
// outlive this process, not the machine: after another boot (the boot ID stands
// in the record) nothing of a pod runs, and its containers ended as Unknown. Those
// that a reboot took are made again of what is kept.
//
// # Recovery
//
// Every step of a pod's start and end, in order; what the next runtime finds when
// this one is killed after the step, and what it does. Steps have these names in
// Deps.Step; the tests kill there.
//
//	step                what is there                   adoption
//	RunPodSandbox
//	sandbox-recorded    record "creating"               demolished: nobody knows the ID
//	sandbox-mounted     + files, /dev/shm               demolished
//	sandbox-spawned     + skiff-pod                     demolished; while the lock is held
//	                                                    but the socket is not there yet,
//	                                                    adoption waits for it
//	sandbox-attached    + address and link              demolished, network detached
//	sandbox-ready       record "ready"                  adopted, ready
//	CreateContainer
//	container-prepared  a snapshot, no record           snapshot swept
//	  (spec written)    a directory without a record    removed with its snapshot
//	container-recorded  container.json                  adopted, created; the root file
//	                                                    system that it takes over is
//	                                                    given to it
//	container-inherited it has that                     same
//	StartContainer
//	container-starting  "started", unknown to skiff-pod adopted, created: "started" is
//	                                                    removed, it can be started
//	  (request sent)    skiff-pod starts it             adopted as skiff-pod has it
//	container-started   it runs                         adopted, running
//	  (it ends)         <container>.exit                adopted, exited
//	StopContainer
//	  (signal sent)     it ends, or not                 adopted as it is; the caller asks
//	                                                    again
//	StopPodSandbox
//	stop-recorded       record "stopped", all runs      not ready; the caller asks again,
//	                                                    and each step below is repeated
//	stop-killed         containers ended                not ready, containers exited
//	stop-detached       no address                      same
//	stop-ended          no skiff-pod, /dev/shm          same; exits from their records
//	RemoveContainer
//	remove-forgotten    skiff-pod forgot it             exited (from its .exit record)
//	  (files going)     record, no snapshot             exited; the caller asks again
//	remove-removed      no record                       gone
//	RemovePodSandbox
//	remove-emptied      record, no containers           not ready; the caller asks again
//	  (directory going) renamed ".gone-..."             removed
//	any time
//	  skiff-pod killed  lock free, no record of ends    not ready; the containers' processes
//	                                                    are killed by their cgroups, they
//	                                                    ended as Unknown with code 255
//
// # Errors
//
// They are gRPC status errors where a client decides by the code (NotFound,
// AlreadyExists, FailedPrecondition, InvalidArgument, DeadlineExceeded from
// ExecSync), wrapped errors otherwise. Stopping and removing what is not there is
// no error.
package runtime
