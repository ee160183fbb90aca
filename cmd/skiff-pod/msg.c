#include "pod.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const char *msg_get(const struct msg *m, const char *key)
{
	size_t k = strlen(key);
	for (const char *p = m->buf; p < m->buf + m->len; p += strlen(p) + 1)
		if (!strncmp(p, key, k) && p[k] == '=')
			return p + k + 1;
	return "";
}

long msg_int(const struct msg *m, const char *key, long dflt)
{
	const char *v = msg_get(m, key);
	char *end;
	if (!*v)
		return dflt;
	long n = strtol(v, &end, 10);
	return *end ? dflt : n;
}

int msg_take_fd(struct msg *m, int i)
{
	if (i >= m->nfds)
		return -1;
	int fd = m->fds[i];
	m->fds[i] = -1;
	return fd;
}

void msg_close_fds(struct msg *m)
{
	for (int i = 0; i < m->nfds; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
	m->nfds = 0;
}

int msg_recv(int fd, struct msg *m)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * FDS_MAX)];
		struct cmsghdr align;
	} c;
	struct iovec iov = {m->buf, MSG_MAX};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
	m->nfds = 0;
	ssize_t n = recvmsg(fd, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0)
		return -1;
	for (struct cmsghdr *h2 = CMSG_FIRSTHDR(&h); h2; h2 = CMSG_NXTHDR(&h, h2)) {
		if (h2->cmsg_level != SOL_SOCKET || h2->cmsg_type != SCM_RIGHTS)
			continue;
		int k = (h2->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (int i = 0; i < k; i++) {
			int f;
			memcpy(&f, CMSG_DATA(h2) + i * sizeof(int), sizeof f);
			if (m->nfds < FDS_MAX)
				m->fds[m->nfds++] = f;
			else
				close(f);
		}
	}
	if (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		msg_close_fds(m);
		errno = EMSGSIZE;
		return -1;
	}
	m->len = n;
	m->buf[n] = 0;
	return n;
}

void out_field(struct out *o, const char *fmt, ...)
{
	va_list ap;
	size_t room = sizeof o->buf - o->len;
	if (room < 2)
		return;
	va_start(ap, fmt);
	int n = vsnprintf(o->buf + o->len, room, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	o->len += (size_t)n < room ? (size_t)n + 1 : room;
}

int out_send(struct out *o, int fd, int passfd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c;
	struct iovec iov = {o->buf, o->len};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	if (passfd >= 0) {
		memset(&c, 0, sizeof c);
		h.msg_control = c.buf;
		h.msg_controllen = sizeof c.buf;
		struct cmsghdr *p = CMSG_FIRSTHDR(&h);
		p->cmsg_level = SOL_SOCKET;
		p->cmsg_type = SCM_RIGHTS;
		p->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(p), &passfd, sizeof passfd);
	}
	return sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

void reply_ok(struct out *o, const char *seq)
{
	o->len = 0;
	out_field(o, "ok");
	out_field(o, "seq=%s", seq);
}

void reply_err(int fd, const char *seq, int err, const char *fmt, ...)
{
	struct out o = {.len = 0};
	char text[3072];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	out_field(&o, "err");
	out_field(&o, "seq=%s", seq);
	out_field(&o, "errno=%d", err);
	out_field(&o, "msg=%s", text);
	out_send(&o, fd, -1);
}
