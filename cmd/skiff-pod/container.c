/* Containers and the processes started in them: start, exit, records. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct ct *cts;

struct ct *ct_find(const char *id)
{
	for (struct ct *c = cts; c; c = c->next)
		if (!strcmp(c->id, id))
			return c;
	return NULL;
}

static char *dup_or_null(const char *s) { return *s ? strdup(s) : NULL; }

static struct ct *ct_new(const char *id)
{
	struct ct *c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	c->id = strdup(id);
	c->in = c->console = c->log = -1;
	c->status.src.kind = K_STATUS;
	c->out.src.kind = c->err.src.kind = K_STREAM;
	c->status.src.fd = c->out.src.fd = c->err.src.fd = -1;
	c->status.ct = c->out.ct = c->err.ct = c;
	c->out.name = "stdout";
	c->err.name = "stderr";
	c->next = cts;
	cts = c;
	return c;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void ct_forget(struct ct *c)
{
	stream_close(&c->out);
	stream_close(&c->err);
	if (c->status.src.fd >= 0)
		unwatch(&c->status.src);
	shut(&c->in);
	shut(&c->console);
	shut(&c->log);
	for (struct ct **p = &cts; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	free(c->id);
	free(c->log_path);
	free(c->oom_path);
	free(c->procs_path);
	free(c);
}

void ct_describe(struct ct *c, struct out *o)
{
	static const char *names[] = {"starting", "running", "exited", "failed"};
	out_field(o, "id=%s", c->id);
	out_field(o, "kind=%s", c->exec ? "exec" : "container");
	out_field(o, "state=%s", names[c->state]);
	out_field(o, "pid=%d", c->pid);
	out_field(o, "started=%lld", (long long)c->started);
	out_field(o, "dropped=%llu", (unsigned long long)c->dropped);
	if (c->state == S_EXITED) {
		out_field(o, "finished=%lld", (long long)c->finished);
		out_field(o, "code=%d", c->code);
		out_field(o, "sig=%d", c->sig);
		out_field(o, "oom=%d", c->oom);
	}
	if (c->state == S_FAILED) {
		out_field(o, "finished=%lld", (long long)c->finished);
		out_field(o, "msg=%s", c->msg);
	}
}

/* Writes <id>.exit beside the socket: the record outlives this process. */
static void record_end(struct ct *c)
{
	struct out o = {.len = 0};
	char tmp[300], name[300];
	if (c->exec)
		return;
	ct_describe(c, &o);
	snprintf(name, sizeof name, "%s.exit", c->id);
	snprintf(tmp, sizeof tmp, ".%s.exit", c->id);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	int ok = write(fd, o.buf, o.len) == (ssize_t)o.len && !fsync(fd);
	close(fd);
	if (!ok || rename(tmp, name))
		unlink(tmp);
}

static void announce(struct ct *c, const char *type)
{
	struct out o = {.len = 0};
	out_field(&o, "event");
	out_field(&o, "type=%s", type);
	ct_describe(c, &o);
	broadcast(&o);
}

static void answer(struct ct *c)
{
	struct out o;
	if (!c->waiter || c->waiter->src.fd < 0)
		return;
	if (c->state == S_FAILED) {
		reply_err(c->waiter->src.fd, c->seq, EIO, "%s", c->msg);
	} else {
		reply_ok(&o, c->seq);
		ct_describe(c, &o);
		out_send(&o, c->waiter->src.fd, -1);
	}
	c->waiter = NULL;
}

static long read_counter(const char *path, const char *key)
{
	char buf[2048], *p;
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, buf, sizeof buf - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = 0;
	for (p = buf; (p = strstr(p, key)); p++)
		if ((p == buf || p[-1] == '\n') && p[strlen(key)] == ' ')
			return atol(p + strlen(key) + 1);
	return 0;
}

/* Sends sig to every process of the container's cgroup; how many it reached. */
static int kill_cgroup(const char *path, int sig)
{
	char buf[4096];
	int n, hit = 0, pid = 0, fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 0;
	while ((n = read(fd, buf, sizeof buf)) > 0)
		for (int i = 0; i < n; i++) {
			if (buf[i] >= '0' && buf[i] <= '9') {
				pid = pid * 10 + buf[i] - '0';
			} else {
				if (pid > 1 && !kill(pid, sig))
					hit++;
				pid = 0;
			}
		}
	close(fd);
	return hit;
}

int ct_kill(struct ct *c, int sig, int all)
{
	if (c->state != S_RUNNING && c->state != S_STARTING) {
		errno = ESRCH;
		return -1;
	}
	if (all && kill_cgroup(c->procs_path, sig))
		return 0;
	pid_t p = c->pid && !c->early ? c->pid : c->starter;
	if (p <= 0) {
		errno = ESRCH;
		return -1;
	}
	return kill(p, sig);
}

int ct_running(void)
{
	int n = 0;
	for (struct ct *c = cts; c; c = c->next)
		n += c->state == S_RUNNING || c->state == S_STARTING;
	return n;
}

static void finish(struct ct *c, int status)
{
	c->finished = unix_ns();
	c->state = S_EXITED;
	c->sig = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	c->code = c->sig ? 128 + c->sig : WEXITSTATUS(status);
	if (c->procs_path) /* what shares our PID namespace survives its parent */
		for (int i = 0; i < 8 && kill_cgroup(c->procs_path, SIGKILL); i++)
			sched_yield();
	stream_drain(&c->out);
	stream_drain(&c->err);
	c->oom = read_counter(c->oom_path, "oom_kill") > 0;
	shut(&c->in);
	record_end(c);
	announce(c, "exit");
	if (c->exec)
		ct_forget(c);
}

static void fail(struct ct *c, const char *fallback)
{
	c->state = S_FAILED;
	c->finished = unix_ns();
	if (!c->msg_len)
		c->msg_len = snprintf(c->msg, sizeof c->msg, "%s", fallback);
	while (c->msg_len && c->msg[c->msg_len - 1] == '\n')
		c->msg[--c->msg_len] = 0;
	if (c->procs_path)
		kill_cgroup(c->procs_path, SIGKILL);
	stream_close(&c->out);
	stream_close(&c->err);
	shut(&c->in);
	record_end(c);
	answer(c);
	announce(c, "failed");
	if (c->exec)
		ct_forget(c);
}

/* The terminal's master arrives from the starter before its pid does. */
static void take_console(struct ct *c)
{
	struct msg *m = malloc(sizeof *m);
	if (!m || c->console < 0) {
		free(m);
		return;
	}
	if (msg_recv(c->console, m) >= 0 && (c->in = msg_take_fd(m, 0)) >= 0) {
		int fd = fcntl(c->in, F_DUPFD_CLOEXEC, 3);
		if (fd >= 0) {
			fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
			c->out.src.fd = fd;
			watch(&c->out.src, EPOLLIN);
		}
	}
	msg_close_fds(m);
	free(m);
	shut(&c->console);
}

void ct_status_readable(struct ct *c)
{
	char *nl;
	if (c->status.src.fd < 0)
		return;
	ssize_t n = read(c->status.src.fd, c->msg + c->msg_len, sizeof c->msg - 1 - c->msg_len);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		unwatch(&c->status.src);
		return;
	}
	c->msg_len += n;
	c->msg[c->msg_len] = 0;
	if (c->state == S_STARTING && !strncmp(c->msg, "pid ", 4) && (nl = strchr(c->msg, '\n'))) {
		c->pid = atoi(c->msg + 4);
		c->started = unix_ns();
		c->state = S_RUNNING;
		c->msg_len = 0;
		take_console(c);
		answer(c);
		announce(c, "started");
	}
}

void ct_reap(void)
{
	/* A process is ours to reap only after its starter is gone, and the starter
	 * wrote the pid before that: so the pids are known here. */
	for (struct ct *c = cts, *n; c; c = n) {
		n = c->next;
		if (c->state == S_STARTING)
			ct_status_readable(c);
	}
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG);
		if (pid <= 0)
			return;
		if (pid == nsinit)
			nsinit = 0;
		for (struct ct *c = cts, *n; c; c = n) {
			n = c->next;
			if (c->starter == pid) {
				c->starter = 0;
				if (c->state == S_STARTING)
					ct_status_readable(c);
				if (c->state == S_STARTING) {
					char why[64];
					snprintf(why, sizeof why, "the starter ended without a word (wait status %#x)", status);
					fail(c, why);
				}
				break;
			}
			if (c->state == S_RUNNING && c->pid == pid) {
				finish(c, status);
				break;
			}
		}
	}
}

/* In the child: from here to exec, nothing of ours may leak. fds[0..2] stdio,
 * fds[3] status, fds[4] console socket or -1. */
static void become(const char *starter, char *const argv[], int fds[5], int newns)
{
	static char *env[] = {"GOMAXPROCS=1", "GOGC=off", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	int high[5];
	sigset_t none;
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(0022);
	sigaction(SIGPIPE, &dfl, NULL);
	sigaction(SIGXFSZ, &dfl, NULL);
	sigaction(SIGHUP, &dfl, NULL);
	for (int i = 0; i < 5; i++) /* out of the way of the targets */
		high[i] = fds[i] < 0 ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, 16);
	for (int i = 0; i < 5; i++)
		if (high[i] >= 0)
			dup2(high[i], i);
		else if (i < 3)
			dup2(open("/dev/null", O_RDWR | O_CLOEXEC), i);
	if (newns && unshare(CLONE_NEWNS)) {
		dprintf(3, "new mount namespace: %s", strerror(errno));
		_exit(1);
	}
	close_range(high[4] >= 0 ? 5 : 4, ~0U, 0);
	execve(starter, argv, env);
	dprintf(3, "start %s: %s", starter, strerror(errno));
	_exit(1);
}

static int launch(struct ct *c, const char *starter, char *const argv[], int fds[5], int newns)
{
	int st[2];
	if (pipe2(st, O_CLOEXEC | O_NONBLOCK))
		return -1;
	fds[3] = st[1];
	c->starter = fork();
	if (c->starter == 0) {
		fcntl(st[1], F_SETFL, 0);
		become(starter, argv, fds, newns);
	}
	close(st[1]);
	if (c->starter < 0) {
		close(st[0]);
		return -1;
	}
	c->status.src.fd = st[0];
	return watch(&c->status.src, EPOLLIN);
}

void ct_start(struct conn *cn, struct msg *m, const char *seq)
{
	int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, con[2] = {-1, -1};
	const char *id = msg_get(m, "id"), *starter = msg_get(m, "starter");
	char *argv[] = {"skiff-start", "run", (char *)msg_get(m, "root"), (char *)id, (char *)msg_get(m, "bundle"), NULL};
	if (!*id || strlen(id) > 128 || strchr(id, '/') || *starter != '/') {
		reply_err(cn->src.fd, seq, EINVAL, "start: id and starter are required");
		return;
	}
	if (ct_find(id)) {
		reply_err(cn->src.fd, seq, EEXIST, "start: %s exists", id);
		return;
	}
	struct ct *c = ct_new(id);
	if (!c) {
		reply_err(cn->src.fd, seq, ENOMEM, "start: out of memory");
		return;
	}
	c->tty = msg_int(m, "tty", 0);
	c->once = msg_int(m, "stdinonce", 0);
	c->log_path = dup_or_null(msg_get(m, "log"));
	c->oom_path = dup_or_null(msg_get(m, "oom"));
	c->procs_path = dup_or_null(msg_get(m, "procs"));
	c->waiter = cn;
	snprintf(c->seq, sizeof c->seq, "%s", seq);
	/* Clients that are to miss nothing come with the start; whether the program
	 * has a terminal or pipes, what it writes passes through these streams. */
	for (int w = 0, i = 0; w < 2; w++) {
		struct stream *s = w ? &c->err : &c->out;
		if (!msg_int(m, w ? "err" : "out", 0))
			continue;
		int fd = msg_take_fd(m, i++);
		if (fd >= 0 && attach_add(s, fd, 1))
			close(fd);
	}
	log_open(c);
	if (c->log_path && c->log < 0) {
		c->msg_len = snprintf(c->msg, sizeof c->msg, "open log %s: %s", c->log_path, strerror(errno));
		fail(c, "");
		return;
	}
	int bad;
	if (c->tty)
		bad = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, con);
	else
		bad = pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || (msg_int(m, "stdin", 0) && pipe2(in, O_CLOEXEC));
	int fds[5] = {in[0], out[1], err[1], -1, con[1]};
	if (!bad) {
		c->in = in[1];
		if (c->in >= 0) /* whoever attaches gets it, and must not hang in it */
			fcntl(c->in, F_SETFL, O_NONBLOCK);
		c->console = con[0];
		if (!c->tty) {
			c->out.src.fd = out[0];
			c->err.src.fd = err[0];
			fcntl(out[0], F_SETFL, O_NONBLOCK);
			fcntl(err[0], F_SETFL, O_NONBLOCK);
			bad = watch(&c->out.src, EPOLLIN) || watch(&c->err.src, EPOLLIN);
		}
		if (!bad)
			bad = launch(c, starter, argv, fds, 1);
	}
	int saved = errno;
	shut(&in[0]);
	shut(&out[1]);
	shut(&err[1]);
	shut(&con[1]);
	if (bad) {
		c->msg_len = snprintf(c->msg, sizeof c->msg, "start: %s", strerror(saved));
		fail(c, "");
	}
}

/* The caller brings stdio (or a console socket) as descriptors and reads the
 * other ends itself; we only start, parent and reap. */
void ct_exec(struct conn *cn, struct msg *m, const char *seq)
{
	const char *id = msg_get(m, "id"), *starter = msg_get(m, "starter");
	char *argv[] = {"skiff-start", "exec", (char *)msg_get(m, "root"), (char *)msg_get(m, "container"),
			(char *)msg_get(m, "spec"), NULL};
	int tty = msg_int(m, "tty", 0);
	if (!*id || strlen(id) > 128 || *starter != '/') {
		reply_err(cn->src.fd, seq, EINVAL, "exec: id and starter are required");
		return;
	}
	if (ct_find(id)) {
		reply_err(cn->src.fd, seq, EEXIST, "exec: %s exists", id);
		return;
	}
	struct ct *c = ct_new(id);
	if (!c) {
		reply_err(cn->src.fd, seq, ENOMEM, "exec: out of memory");
		return;
	}
	c->exec = 1;
	c->waiter = cn;
	snprintf(c->seq, sizeof c->seq, "%s", seq);
	int fds[5] = {-1, -1, -1, -1, -1};
	if (tty)
		fds[4] = m->nfds > 0 ? m->fds[0] : -1;
	else
		for (int i = 0; i < 3 && i < m->nfds; i++)
			fds[i] = m->fds[i];
	for (int i = 0; i < 3; i++) /* programs expect stdio that blocks */
		if (fds[i] >= 0)
			fcntl(fds[i], F_SETFL, fcntl(fds[i], F_GETFL) & ~O_NONBLOCK);
	if (launch(c, starter, argv, fds, own_users)) /* as at the start */
		fail(c, strerror(errno));
}
