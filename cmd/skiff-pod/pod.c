/* skiff-pod pod <dir> [key=value...]   one pod
 * skiff-pod keeper <dir>               listening sockets
 *
 * Runs in the background: the caller's process ends when the socket in <dir>
 * answers (status 0) or with a sentence on stderr (status 1). Nothing connects
 * it to the caller afterwards. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
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

/* PID 1 of a pod whose containers share their processes: it waits and reaps. */
static void init_of_namespace(void)
{
	sigset_t set;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "skiff-pause");
	close_range(0, ~0U, 0);
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

static int set_sysctls(int argc, char **argv, char *errbuf, size_t n)
{
	for (int i = 3; i < argc; i++) {
		char path[512] = "/proc/sys/", *p;
		if (strncmp(argv[i], "sysctl.", 7))
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
		if (write_file(path, eq + 1)) {
			snprintf(errbuf, n, "sysctl %.*s: %s", (int)len, argv[i] + 7, strerror(errno));
			return -1;
		}
	}
	return 0;
}

int pod_setup(int argc, char **argv, char *errbuf, size_t n)
{
	int flags = 0;
	const char *ns = arg(argc, argv, "ns"), *host = arg(argc, argv, "hostname"), *adj = arg(argc, argv, "oom");
	if (strstr(ns, "net"))
		flags |= CLONE_NEWNET;
	if (strstr(ns, "ipc"))
		flags |= CLONE_NEWIPC;
	if (strstr(ns, "uts"))
		flags |= CLONE_NEWUTS;
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) || unshare(flags)) {
		snprintf(errbuf, n, "new namespaces (%s): %s", ns, strerror(errno));
		return -1;
	}
	if ((flags & CLONE_NEWNET) && loopback_up()) {
		snprintf(errbuf, n, "loopback: %s", strerror(errno));
		return -1;
	}
	if ((flags & CLONE_NEWUTS) && *host && sethostname(host, strlen(host))) {
		snprintf(errbuf, n, "hostname %s: %s", host, strerror(errno));
		return -1;
	}
	if (set_sysctls(argc, argv, errbuf, n))
		return -1;
	if (*adj && write_file("/proc/self/oom_score_adj", adj))
		errno = 0; /* below the inherited value only with CAP_SYS_RESOURCE */
	if (strstr(ns, "pid")) {
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
