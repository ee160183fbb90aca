/* Clients that watch a container's output while it is logged. A client that
 * does not read holds the container for at most ATTACH_SECONDS, then it is cut
 * off; one that came with the start holds it for as long as it is there, since it
 * was promised all. A dead one costs nothing. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static int stuck;              /* clients with a rest */
static struct attach *leaving; /* clients with a rest whose stream has ended */

static int64_t until(struct attach *a)
{
	return a->patient ? INT64_MAX : mono_ns() + ATTACH_SECONDS * 1000000000LL;
}

int attach_add(struct stream *s, int fd, int patient)
{
	struct attach *a = calloc(1, sizeof *a);
	if (!a)
		return -1;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	a->src.kind = K_ATTACH;
	a->src.fd = fd;
	a->stream = s;
	a->patient = patient;
	if (watch(&a->src, 0)) { /* only for EPOLLERR: the reader left */
		free(a);
		return -1;
	}
	a->next = s->attached;
	s->attached = a;
	return 0;
}

static void release(struct attach *a)
{
	if (!a->rest)
		return;
	free(a->rest);
	a->rest = NULL;
	stuck--;
	if (a->stream && --a->stream->paused == 0 && a->stream->src.fd >= 0)
		rewatch(&a->stream->src, EPOLLIN);
}

static void drop(struct attach *a)
{
	for (struct attach **p = a->stream ? &a->stream->attached : &leaving; *p; p = &(*p)->next)
		if (*p == a) {
			*p = a->next;
			break;
		}
	release(a);
	unwatch(&a->src);
	free(a);
}

void attach_drop_all(struct stream *s)
{
	while (s->attached) {
		struct attach *a = s->attached;
		if (!a->rest) {
			drop(a);
			continue;
		}
		s->attached = a->next;
		s->paused--;
		a->stream = NULL;
		a->next = leaving;
		leaving = a;
	}
}

void attach_feed(struct stream *s, const char *p, size_t n)
{
	for (struct attach *a = s->attached, *next; a; a = next) {
		next = a->next;
		if (a->rest) { /* read again only while the container is drained */
			char *r = realloc(a->rest, a->len + n);
			if (!r) {
				drop(a);
				continue;
			}
			memcpy(r + a->len, p, n);
			a->rest = r;
			a->len += n;
			continue;
		}
		ssize_t w = write(a->src.fd, p, n);
		if (w < 0 && errno != EAGAIN && errno != EINTR) {
			drop(a);
			continue;
		}
		if (w < 0)
			w = 0;
		if ((size_t)w == n)
			continue;
		a->rest = malloc(n - w);
		if (!a->rest) {
			drop(a);
			continue;
		}
		memcpy(a->rest, p + w, n - w);
		a->off = 0;
		a->len = n - w;
		a->deadline = until(a);
		stuck++;
		if (s->paused++ == 0)
			rewatch(&s->src, 0);
		rewatch(&a->src, EPOLLOUT);
	}
}

void attach_ready(struct attach *a)
{
	if (!a->rest) { /* EPOLLERR */
		drop(a);
		return;
	}
	ssize_t w = write(a->src.fd, a->rest + a->off, a->len - a->off);
	if (w < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (w < 0) {
		drop(a);
		return;
	}
	a->off += w;
	a->deadline = until(a);
	if (a->off < a->len)
		return;
	release(a);
	if (a->stream)
		rewatch(&a->src, 0);
	else
		drop(a);
}

static void each(void (*f)(struct attach *, int64_t *), int64_t *arg)
{
	for (struct ct *c = cts; c; c = c->next)
		for (int i = 0; i < 2; i++)
			for (struct attach *a = (i ? &c->err : &c->out)->attached, *n; a; a = n) {
				n = a->next;
				f(a, arg);
			}
	for (struct attach *a = leaving, *n; a; a = n) {
		n = a->next;
		f(a, arg);
	}
}

static void nearest(struct attach *a, int64_t *t)
{
	if (a->rest && (*t == 0 || a->deadline < *t))
		*t = a->deadline;
}

static void expire(struct attach *a, int64_t *now)
{
	if (a->rest && a->deadline <= *now)
		drop(a);
}

int attach_timeout_ms(void)
{
	int64_t t = 0;
	if (!stuck)
		return -1;
	each(nearest, &t);
	if (t == 0 || t == INT64_MAX)
		return -1;
	t -= mono_ns();
	return t <= 0 ? 0 : (int)(t / 1000000) + 1;
}

void attach_expire(void)
{
	int64_t now = mono_ns();
	if (stuck)
		each(expire, &now);
}
