/* The event loop and the requests. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

pid_t nsinit;
int64_t pod_started;
#define IDLE_MS 500 /* without an event: give buffers back */
static int ep = -1, keeping;
static int64_t closing; /* when a shutdown gives up waiting; 0: none */
static struct conn *conns;
static struct msg in;

/* Keeper mode: descriptors by name. */
struct kept {
	char *name;
	int fd;
	struct kept *next;
};
static struct kept *kept;

int watch(struct src *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};
	return epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e);
}

void rewatch(struct src *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};
	epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &e);
}

void unwatch(struct src *s)
{
	if (s->fd < 0)
		return;
	/* Explicitly: a copy of the descriptor elsewhere would keep it in the set. */
	epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->fd = -1;
}

int listen_at(const char *name)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	snprintf(a.sun_path, sizeof a.sun_path, "%s", name);
	unlink(name);
	if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 16)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void hang_up(struct conn *c)
{
	for (struct ct *k = cts; k; k = k->next)
		if (k->waiter == c)
			k->waiter = NULL;
	for (struct conn **p = &conns; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	unwatch(&c->src);
	free(c);
}

/* A subscriber that does not keep up is cut off: it connects again and lists.
 * Only the descriptor goes here; the loop frees it when it next sees it. */
void broadcast(struct out *o)
{
	for (struct conn *c = conns; c; c = c->next)
		if (c->subscribed && out_send(o, c->src.fd, -1))
			shutdown(c->src.fd, SHUT_RDWR);
}

static void hello(struct conn *c, const char *seq)
{
	struct out o;
	reply_ok(&o, seq);
	out_field(&o, "proto=%d", PROTO);
	out_field(&o, "pid=%d", getpid());
	out_field(&o, "nsinit=%d", nsinit);
	out_field(&o, "started=%lld", (long long)pod_started);
	out_send(&o, c->src.fd, -1);
}

static void list(struct conn *c, const char *seq)
{
	struct out o = {.len = 0};
	for (struct ct *k = cts; k; k = k->next) {
		o.len = 0;
		out_field(&o, "item");
		out_field(&o, "seq=%s", seq);
		ct_describe(k, &o);
		/* The reader may be slower than the buffer: wait, but not for ever. */
		struct pollfd p = {.fd = c->src.fd, .events = POLLOUT};
		while (out_send(&o, c->src.fd, -1)) {
			if (errno != EAGAIN || poll(&p, 1, 5000) <= 0) {
				shutdown(c->src.fd, SHUT_RDWR);
				return;
			}
		}
	}
	reply_ok(&o, seq);
	out_send(&o, c->src.fd, -1);
}

static void attach(struct conn *cn, struct ct *c, const char *seq)
{
	struct out o;
	int i = 0;
	if (c->state != S_RUNNING) {
		reply_err(cn->src.fd, seq, ESRCH, "container is not running");
		return;
	}
	for (int w = 0; w < 2; w++) {
		struct stream *s = w ? &c->err : &c->out;
		if (!msg_int(&in, w ? "err" : "out", 0))
			continue;
		int fd = msg_take_fd(&in, i++);
		if (fd >= 0 && (s->src.fd < 0 || attach_add(s, fd, 0)))
			close(fd); /* ended already: the client reads its end */
	}
	reply_ok(&o, seq);
	out_field(&o, "tty=%d", c->tty);
	out_send(&o, cn->src.fd, msg_int(&in, "in", 0) || c->tty ? c->in : -1);
}

static void pod_request(struct conn *cn, const char *verb, const char *seq)
{
	struct out o;
	int rc = 0;
	if (!strcmp(verb, "start")) {
		if (closing)
			reply_err(cn->src.fd, seq, ESHUTDOWN, "the pod is ending");
		else
			ct_start(cn, &in, seq);
		return;
	}
	if (!strcmp(verb, "exec")) {
		ct_exec(cn, &in, seq);
		return;
	}
	if (!strcmp(verb, "list")) {
		list(cn, seq);
		return;
	}
	if (!strcmp(verb, "subscribe")) {
		cn->subscribed = 1;
	} else if (!strcmp(verb, "shutdown")) {
		closing = mono_ns() + 5000000000LL;
		for (struct ct *c = cts; c; c = c->next)
			ct_kill(c, SIGKILL, 1);
	} else {
		struct ct *c = ct_find(msg_get(&in, "id"));
		if (!c) {
			reply_err(cn->src.fd, seq, ENOENT, "no such container");
			return;
		}
		if (!strcmp(verb, "attach")) {
			attach(cn, c, seq);
			return;
		}
		if (!strcmp(verb, "signal")) {
			long sig = msg_int(&in, "sig", 0);
			if (sig < 1 || sig > 64) {
				reply_err(cn->src.fd, seq, EINVAL, "signal: sig must be between 1 and 64");
				return;
			}
			rc = ct_kill(c, sig, msg_int(&in, "all", 0));
		} else if (!strcmp(verb, "reopen"))
			rc = log_reopen(c);
		else if (!strcmp(verb, "closestdin")) {
			if (c->in >= 0 && !c->tty) {
				close(c->in);
				c->in = -1;
			}
		} else if (!strcmp(verb, "forget")) {
			if (c->state == S_RUNNING || c->state == S_STARTING) {
				reply_err(cn->src.fd, seq, EBUSY, "container is running");
				return;
			}
			ct_forget(c);
		} else {
			reply_err(cn->src.fd, seq, ENOSYS, "unknown request %s", verb);
			return;
		}
	}
	if (rc) {
		reply_err(cn->src.fd, seq, errno, "%s: %s", verb, strerror(errno));
		return;
	}
	reply_ok(&o, seq);
	out_send(&o, cn->src.fd, -1);
}

static void keeper_request(struct conn *cn, const char *verb, const char *seq)
{
	const char *name = msg_get(&in, "name");
	struct out o;
	struct kept **p = &kept, *k;
	int pass = -1;
	if (!strcmp(verb, "shutdown")) {
		closing = mono_ns();
	} else if (!strcmp(verb, "names")) {
		for (k = kept; k; k = k->next) {
			o.len = 0;
			out_field(&o, "item");
			out_field(&o, "seq=%s", seq);
			out_field(&o, "name=%s", k->name);
			out_send(&o, cn->src.fd, -1);
		}
	} else {
		while (*p && strcmp((*p)->name, name))
			p = &(*p)->next;
		k = *p;
		if (!strcmp(verb, "put") && *name && in.nfds == 1) {
			if (!k && (k = calloc(1, sizeof *k))) {
				k->name = strdup(name);
				k->fd = -1;
				k->next = kept;
				kept = k;
			}
			if (k && k->fd >= 0)
				close(k->fd);
			if (k)
				k->fd = msg_take_fd(&in, 0);
		} else if (!strcmp(verb, "get") && k) {
			pass = k->fd;
		} else if (!strcmp(verb, "drop")) {
			if (k) {
				*p = k->next;
				close(k->fd);
				free(k->name);
				free(k);
			}
		} else {
			reply_err(cn->src.fd, seq, ENOENT, "%s %s: nothing of that name", verb, name);
			return;
		}
	}
	reply_ok(&o, seq);
	out_send(&o, cn->src.fd, pass);
}

static void readable(struct conn *c)
{
	char seq[24];
	int n = msg_recv(c->src.fd, &in);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		hang_up(c);
		return;
	}
	snprintf(seq, sizeof seq, "%s", msg_get(&in, "seq"));
	if (!strcmp(in.buf, "hello"))
		hello(c, seq);
	else if (keeping)
		keeper_request(c, in.buf, seq);
	else
		pod_request(c, in.buf, seq);
	msg_close_fds(&in);
}

static void accepted(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct conn *c = fd < 0 ? NULL : calloc(1, sizeof *c);
	if (!c) {
		if (fd >= 0)
			close(fd);
		return;
	}
	c->src.kind = K_CONN;
	c->src.fd = fd;
	c->next = conns;
	conns = c;
	if (watch(&c->src, EPOLLIN))
		hang_up(c);
}

int serve(int listener, int keeper)
{
	struct src l = {K_LISTEN, listener}, sig = {K_SIGNAL, -1};
	sigset_t set;
	keeping = keeper;
	ep = epoll_create1(EPOLL_CLOEXEC);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sig.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (ep < 0 || sig.fd < 0 || watch(&l, EPOLLIN) || watch(&sig, EPOLLIN))
		return 1;
	for (;;) {
		/* One event at a time: what an event frees cannot be in the same batch. */
		struct epoll_event e;
		int wait = attach_timeout_ms();
		if (closing) {
			if (!ct_running() || mono_ns() > closing)
				return 0;
			wait = 100;
		}
		if (wait < 0 && log_used())
			wait = IDLE_MS;
		int n = epoll_wait(ep, &e, 1, wait);
		if (n == 0 && log_used())
			log_idle();
		attach_expire();
		if (n <= 0)
			continue;
		struct src *s = e.data.ptr;
		struct signalfd_siginfo si;
		switch (s->kind) {
		case K_LISTEN:
			accepted(s->fd);
			break;
		case K_CONN:
			readable((struct conn *)s);
			break;
		case K_SIGNAL:
			while (read(s->fd, &si, sizeof si) > 0)
				;
			ct_reap();
			break;
		case K_STREAM:
			if (stream_read((struct stream *)s, LINE_MAX_LOG) < 0)
				stream_close((struct stream *)s);
			break;
		case K_STATUS:
			ct_status_readable(((struct ct *)((char *)s - offsetof(struct ct, status))));
			break;
		case K_ATTACH:
			attach_ready((struct attach *)s);
			break;
		}
	}
}
