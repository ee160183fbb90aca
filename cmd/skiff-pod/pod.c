/* skiff-pod pod <dir> [key=value...]   one pod
 * skiff-pod keeper <dir>               listening sockets
 *
 * Runs in the background: the caller's process ends when the socket in <dir>
 * answers (status 0) or with a sentence on stderr (status 1). Nothing connects
 * it to the caller afterwards. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = write(fd, value, strlen(value));
	int e = errno;
	close(fd);
	errno = e;
	return n < 0 ? -1 : 0;
}

static int loopback_up(void)
{
	struct ifreq r = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	int rc = ioctl(fd, SIOCGIFFLAGS, &r);
	r.ifr_flags |= IFF_UP;
	rc = rc ? rc : ioctl(fd, SIOCSIFFLAGS, &r);
	close(fd);
	return rc;
}

int own_users;

#define PAUSE_USER 65535

/* PID 1 of a pod whose containers share their processes: it waits and reaps. */
static void init_of_namespace(void)
{
	sigset_t set;
	struct __user_cap_header_struct caps = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};
	prctl(PR_SET_NAME, "skiff-pause");
	close_range(0, ~0U, 0);
	/* A container may be allowed to trace it: no files and no rights are to be had
	 * here. A user namespace may be too small to have the user. */
	if (chroot("/proc/self/fdinfo") || chdir("/") || setgroups(0, NULL) ||
	    ((setresgid(PAUSE_USER, PAUSE_USER, PAUSE_USER) || setresuid(PAUSE_USER, PAUSE_USER, PAUSE_USER)) && errno != EINVAL) ||
	    syscall(SYS_capset, &caps, none))
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigfillset(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (;;) {
		int sig;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigemptyset(&set);
		sigaddset(&set, SIGCHLD);
		sigwait(&set, &sig);
	}
}

static const char *arg(int argc, char **argv, const char *key)
{
	size_t k = strlen(key);
	for (int i = 3; i < argc; i++)
		if (!strncmp(argv[i], key, k) && argv[i][k] == '=')
			return argv[i] + k + 1;
	return "";
}

/* In a pod with a user namespace of its own sysctls are set from inside of it: that is
 * who may, and what IDs in them, and limits, mean. Those that inside nobody may set are
 * set from outside; the two share this list of them, by the arguments' numbers. */
static unsigned char *refused;

static int set_sysctls(int argc, char **argv, int inside, char *errbuf, size_t n)
{
	for (int i = 3; i < argc; i++) {
		char path[512] = "/proc/sys/", *p;
		if (strncmp(argv[i], "sysctl.", 7) || (refused && !inside && !refused[i]))
			continue;
		char *eq = strchr(argv[i], '=');
		size_t len = eq ? (size_t)(eq - argv[i] - 7) : 0;
		if (!eq || len == 0 || len > 400 || strstr(argv[i], "..")) {
			snprintf(errbuf, n, "sysctl %s: not a name and a value", argv[i] + 7);
			return -1;
		}
		memcpy(path + 10, argv[i] + 7, len);
		/* Both spellings are allowed; in "net/a.b/c" dots are part of names. */
		if (!memchr(path + 10, '/', len))
			for (p = path + 10; *p; p++)
				if (*p == '.')
					*p = '/';
		if (!write_file(path, eq + 1))
			continue;
		if (inside && (errno == EACCES || errno == EPERM) && strncmp(path + 10, "user/", 5)) {
			refused[i] = 1;
			continue;
		}
		snprintf(errbuf, n, "sysctl %.*s: %s", (int)len, argv[i] + 7, strerror(errno));
		return -1;
	}
	return 0;
}

/* First in the pod's user namespace: waits for its IDs, becomes root by them, and sets
 * what only such may set. It stays as PID 1 or goes when its namespaces are taken on. */
static void first_in_namespaces(int argc, char **argv, int go, int done, int stay)
{
	char c, why[300] = "";
	if (read(go, &c, 1) != 1)
		_exit(1);
	if (setgroups(0, NULL) || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		snprintf(why, sizeof why, "become root of the user namespace: %s", strerror(errno));
	else
		set_sysctls(argc, argv, 1, why, sizeof why);
	if (*why && write(done, why, strlen(why)) < 0)
		_exit(1);
	close(done);
	if (*why)
		_exit(1);
	if (stay)
		init_of_namespace();
	if (read(go, &c, 1) < 0)
		_exit(1);
	_exit(0);
}

static int join(pid_t p, const char *name, int type)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", p, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int rc = fd < 0 ? -1 : type ? setns(fd, type) : dup3(fd, USERNS_FD, O_CLOEXEC);
	int e = errno;
	close(fd);
	errno = e;
	return rc < 0 ? -1 : 0;
}

static int write_map(pid_t p, const char *file, const char *map)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", p, file);
	return write_file(path, map);
}

/* Makes a user namespace and those of flags, which then belong to it. We enter the
 * latter, with all rights over them; of the former we keep a descriptor. */
static int make_users(int argc, char **argv, int flags, char *errbuf, size_t n)
{
	int go[2], done[2], bad = 0;
	const char *ns = arg(argc, argv, "ns");
	refused = mmap(NULL, argc, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (refused == MAP_FAILED || pipe2(go, O_CLOEXEC) || pipe2(done, O_CLOEXEC)) {
		snprintf(errbuf, n, "user namespace: %s", strerror(errno));
		return -1;
	}
	pid_t p = syscall(SYS_clone, CLONE_NEWUSER | flags | SIGCHLD, 0, 0, 0, 0);
	if (p == 0) {
		close(go[1]);
		close(done[0]);
		first_in_namespaces(argc, argv, go[0], done[1], flags & CLONE_NEWPID);
	}
	close(go[0]);
	close(done[1]);
	if (p < 0) {
		snprintf(errbuf, n, "new namespaces (user,%s): %s", ns, strerror(errno));
		bad = -1;
	} else if (write_map(p, "uid_map", arg(argc, argv, "uidmap")) || write_map(p, "gid_map", arg(argc, argv, "gidmap"))) {
		snprintf(errbuf, n, "map the IDs of the user namespace: %s", strerror(errno));
		bad = -1;
	} else if (write(go[1], "", 1) != 1 || read(done[0], errbuf, n - 1)) {
		if (!*errbuf)
			snprintf(errbuf, n, "the first process of the user namespace: %s", strerror(errno));
		bad = -1;
	} else if (join(p, "user", 0) || ((flags & CLONE_NEWNET) && join(p, "net", CLONE_NEWNET)) ||
		   ((flags & CLONE_NEWIPC) && join(p, "ipc", CLONE_NEWIPC)) ||
		   ((flags & CLONE_NEWUTS) && join(p, "uts", CLONE_NEWUTS))) {
		snprintf(errbuf, n, "enter namespaces (user,%s): %s", ns, strerror(errno));
		bad = -1;
	}
	if (bad && p > 0)
		kill(p, SIGKILL);
	close(go[1]);
	close(done[0]);
	if (!bad && (flags & CLONE_NEWPID))
		nsinit = p;
	else if (p > 0)
		waitpid(p, NULL, 0);
	return bad;
}

int pod_setup(int argc, char **argv, char *errbuf, size_t n)
{
	int flags = 0;
	const char *ns = arg(argc, argv, "ns"), *host = arg(argc, argv, "hostname"), *adj = arg(argc, argv, "oom");
	int pid = strstr(ns, "pid") ? CLONE_NEWPID : 0;
	if (strstr(ns, "net"))
		flags |= CLONE_NEWNET;
	if (strstr(ns, "ipc"))
		flags |= CLONE_NEWIPC;
	if (strstr(ns, "uts"))
		flags |= CLONE_NEWUTS;
	if (*adj && write_file("/proc/self/oom_score_adj", adj))
		errno = 0; /* below the inherited value only with CAP_SYS_RESOURCE */
	own_users = *arg(argc, argv, "uidmap") != 0;
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) || (!own_users && unshare(flags))) {
		snprintf(errbuf, n, "new namespaces (%s): %s", ns, strerror(errno));
		return -1;
	}
	if (own_users && make_users(argc, argv, flags | pid, errbuf, n))
		return -1;
	if ((flags & CLONE_NEWNET) && loopback_up()) {
		snprintf(errbuf, n, "loopback: %s", strerror(errno));
		return -1;
	}
	if ((flags & CLONE_NEWUTS) && *host && sethostname(host, strlen(host))) {
		snprintf(errbuf, n, "hostname %s: %s", host, strerror(errno));
		return -1;
	}
	if (set_sysctls(argc, argv, 0, errbuf, n))
		return -1;
	if (pid && !own_users) {
		pid_t p = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
		if (p == 0)
			init_of_namespace();
		if (p < 0) {
			snprintf(errbuf, n, "new PID namespace: %s", strerror(errno));
			return -1;
		}
		nsinit = p;
	}
	return 0;
}

static int say(int fd, const char *text)
{
	return write(fd, text, strlen(text)) < 0;
}

int main(int argc, char **argv)
{
	char why[600] = "";
	int up[2], n;
	int keeper = argc > 2 && !strcmp(argv[1], "keeper");
	if (argc < 3 || (!keeper && strcmp(argv[1], "pod"))) {
		say(2, "usage: skiff-pod pod|keeper <dir> [key=value...]\n");
		return 2;
	}
	/* 3 is the caller's lock on the directory: held for as long as we live, it
	 * says so to whoever looks, from before our first instruction. */
	close_range(4, ~0U, 0);
	fcntl(3, F_SETFD, FD_CLOEXEC);
	if (chdir(argv[2]) || pipe2(up, O_CLOEXEC)) {
		dprintf(2, "%s: %s\n", argv[2], strerror(errno));
		return 1;
	}
	pid_t child = fork();
	if (child < 0) {
		dprintf(2, "fork: %s\n", strerror(errno));
		return 1;
	}
	if (child > 0) {
		size_t len = 0;
		close(up[1]);
		while (len < sizeof why - 1 && (n = read(up[0], why + len, sizeof why - 1 - len)) > 0)
			len += n;
		int ok = !strncmp(why, "ok ", 3);
		say(ok ? 1 : 2, *why ? why : "skiff-pod ended at its start\n");
		return ok ? 0 : 1;
	}
	setsid();
	umask(0); /* modes are given where files are made; the directory is 0700 */
	struct sigaction ign = {.sa_handler = SIG_IGN};
	sigaction(SIGPIPE, &ign, NULL);
	sigaction(SIGXFSZ, &ign, NULL);
	sigaction(SIGHUP, &ign, NULL);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	if (null > 2)
		close(null);
	pod_started = unix_ns();
	int listener = -1;
	if (keeper || !pod_setup(argc, argv, why, sizeof why)) {
		listener = listen_at(keeper ? "keeper.sock" : "pod.sock");
		if (listener < 0)
			snprintf(why, sizeof why, "socket in %s: %s", argv[2], strerror(errno));
	}
	if (listener < 0) {
		dprintf(up[1], "%s\n", why);
		return 1;
	}
	dprintf(up[1], "ok %d %d\n", getpid(), nsinit);
	close(up[1]);
	int rc = serve(listener, keeper);
	unlink(keeper ? "keeper.sock" : "pod.sock");
	return rc;
}
