/* Container output: from the pipes into CRI log files and to attached clients.
 *
 * A record is "<RFC3339Nano> <stream> F|P <content>\n". A line longer than
 * LINE_MAX_LOG, and one that ends with its stream, becomes P. A record is in the
 * file whole or not at all: what a full disk cut is cut away, and the lines that
 * do not fit are dropped, counted, and do not stop the container. */
#include "pod.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Neither holds anything between two events: log_idle gives their memory back. */
static char obuf[LINE_MAX_LOG * 2] __attribute__((aligned(4096))); /* records on their way to one file */
static char rbuf[LINE_MAX_LOG] __attribute__((aligned(4096)));
static size_t olen;
static int used;

int log_used(void) { return used; }

void log_idle(void)
{
	used = 0;
	madvise(obuf, sizeof obuf, MADV_DONTNEED);
	madvise(rbuf, sizeof rbuf, MADV_DONTNEED);
}

int64_t unix_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t mono_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The time in UTC with nine digits, which RFC3339Nano parsers take. */
static size_t stamp(char *p, int64_t ns)
{
	int64_t s = ns / 1000000000, days = s / 86400, rem = s % 86400;
	int64_t z = days + 719468, era = z / 146097, doe = z - era * 146097;
	int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	int d = doy - (153 * mp + 2) / 5 + 1, mo = mp < 10 ? mp + 3 : mp - 9;
	int y = yoe + era * 400 + (mo <= 2);
	return sprintf(p, "%04d-%02d-%02dT%02d:%02d:%02d.%09dZ", y, mo, d, (int)(rem / 3600),
		       (int)(rem / 60 % 60), (int)(rem % 60), (int)(ns % 1000000000));
}

void log_open(struct ct *c)
{
	c->log = -1;
	if (c->log_path)
		c->log = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
}

int log_reopen(struct ct *c)
{
	if (!c->log_path)
		return 0;
	int fd = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (fd < 0)
		return -1;
	if (c->log >= 0)
		close(c->log);
	c->log = fd;
	return 0;
}

static uint64_t count_lines(const char *p, size_t n)
{
	uint64_t k = 0;
	for (const char *e = p + n; p < e && (p = memchr(p, '\n', e - p)); p++)
		k++;
	return k;
}

static void flush_log(struct ct *c)
{
	size_t off = 0, line = 0; /* written; of these, up to a record's end */
	if (c->log >= 0) {
		while (off < olen) {
			ssize_t n = write(c->log, obuf + off, olen - off);
			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				break;
			off += n;
		}
		if (off < olen) {
			char *nl = off ? memrchr(obuf, '\n', off) : NULL;
			struct stat st;
			line = nl ? nl - obuf + 1 : 0;
			if (off > line && !fstat(c->log, &st) && st.st_size >= (off_t)(off - line))
				if (ftruncate(c->log, st.st_size - (off - line))) { /* counted below */ }
			c->dropped += count_lines(obuf + line, olen - line);
		}
	} else {
		c->dropped += count_lines(obuf, olen);
	}
	olen = 0;
}

static void record(struct ct *c, const char *stream, char tag, const char *p, size_t n, int64_t ts)
{
	if (!c->log_path)
		return;
	if (olen + n + 64 > sizeof obuf)
		flush_log(c);
	olen += stamp(obuf + olen, ts);
	olen += sprintf(obuf + olen, " %s %c ", stream, tag);
	memcpy(obuf + olen, p, n);
	olen += n;
	obuf[olen++] = '\n';
}

static void part_free(struct stream *s)
{
	if (s->part)
		munmap(s->part, LINE_MAX_LOG);
	s->part = NULL;
	s->len = 0;
}

int stream_read(struct stream *s, size_t max)
{
	size_t room = LINE_MAX_LOG - s->len;
	char *to = s->part ? s->part + s->len : rbuf;
	if (max < room)
		room = max;
	ssize_t n = read(s->src.fd, to, room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	int64_t ts = unix_ns();
	used = 1;
	if (n <= 0) { /* a terminal whose last holder left answers EIO */
		if (s->len) {
			record(s->ct, s->name, 'P', s->part, s->len, ts);
			flush_log(s->ct);
		}
		part_free(s);
		return -1;
	}
	attach_feed(s, to, n);
	char *p = s->part ? s->part : rbuf, *end = to + n, *nl;
	char *scan = to;
	while ((nl = memchr(scan, '\n', end - scan))) {
		record(s->ct, s->name, 'F', p, nl - p, ts);
		p = scan = nl + 1;
	}
	size_t left = end - p;
	if (left == LINE_MAX_LOG) {
		record(s->ct, s->name, 'P', p, left, ts);
		left = 0;
	}
	flush_log(s->ct);
	if (!left) {
		part_free(s);
		return 1;
	}
	if (!s->part) {
		void *m = mmap(NULL, LINE_MAX_LOG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (m == MAP_FAILED) { /* out of memory: give the piece as it is */
			record(s->ct, s->name, 'P', p, left, ts);
			flush_log(s->ct);
			return 1;
		}
		s->part = m;
	}
	memmove(s->part, p, left);
	s->len = left;
	return 1;
}

void stream_close(struct stream *s)
{
	attach_drop_all(s);
	part_free(s);
	if (s->src.fd >= 0)
		unwatch(&s->src);
}

/* Reads what was written before now, and no more: a process that the container
 * left behind may go on writing for ever. */
void stream_drain(struct stream *s)
{
	int avail = 0;
	if (s->src.fd < 0)
		return;
	if (ioctl(s->src.fd, FIONREAD, &avail))
		avail = 1 << 20;
	while (avail > 0) {
		size_t before = LINE_MAX_LOG - s->len;
		int r = stream_read(s, (size_t)avail < before ? (size_t)avail : before);
		if (r <= 0)
			break;
		avail -= before < (size_t)avail ? before : (size_t)avail;
	}
	/* At its end, say so now: the exit is announced after the last line. */
	int more = 0;
	if (!ioctl(s->src.fd, FIONREAD, &more) && more == 0 && stream_read(s, 1) < 0)
		stream_close(s);
}
