/* skiff-pod: the resident process of one pod. See PROTOCOL.md. */
#ifndef SKIFF_POD_H
#define SKIFF_POD_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTO 1
#define MSG_MAX 32768  /* bytes of one packet */
#define FDS_MAX 4      /* descriptors with one packet */
#define LINE_MAX_LOG 16384 /* bytes of one CRI log record's content */
#define USERNS_FD 20       /* our descriptor of the pod's user namespace, where it has one */
#define ATTACH_SECONDS 10  /* how long a stuck attached client holds a stream */

/* What epoll hands back: the first member of everything that is watched. */
enum kind { K_LISTEN, K_CONN, K_SIGNAL, K_STREAM, K_STATUS, K_ATTACH };
struct src {
	enum kind kind;
	int fd; /* -1: closed */
};

struct conn {
	struct src src;
	int subscribed;
	struct conn *next;
};

struct attach {
	struct src src;
	struct stream *stream;
	char *rest; /* what did not fit into its pipe */
	size_t len, off;
	int patient;      /* never cut off */
	int64_t deadline; /* monotonic ns */
	struct attach *next;
};

struct ct;
struct stream {
	struct src src;
	struct ct *ct;
	const char *name; /* stdout, stderr */
	char *part;       /* a line without its end, at most LINE_MAX_LOG bytes */
	size_t len;
	int paused; /* attached clients that hold it */
	struct attach *attached;
};

enum state { S_STARTING, S_RUNNING, S_EXITED, S_FAILED };
struct ct {
	char *id;
	int exec;  /* a process in a running container, not a container */
	enum state state;
	pid_t starter, pid;
	int early; /* the process was reaped before its start was known */
	int early_status;
	int tty, once;
	int in;      /* write end of stdin, or the terminal; -1 */
	int console; /* our end of the console socket; -1 */
	int log;     /* -1: none */
	int torn;    /* the log ends within a line */
	char *log_path, *oom_path, *procs_path;
	uint64_t dropped; /* log records that could not be written */
	struct { struct src src; struct ct *ct; } status;
	char msg[2048]; /* what the starter wrote to its status pipe */
	size_t msg_len;
	struct stream out, err;
	struct conn *waiter; /* who asked for the start; may have left */
	char seq[24];
	int64_t started, finished; /* unix ns */
	int code, sig, oom;
	struct ct *next;
};

/* msg.c: packets of NUL-separated fields. */
struct msg {
	char buf[MSG_MAX + 1];
	size_t len;
	int fds[FDS_MAX], nfds;
};
const char *msg_get(const struct msg *m, const char *key); /* "" when absent */
long msg_int(const struct msg *m, const char *key, long dflt);
int msg_take_fd(struct msg *m, int i); /* the caller owns it; -1 when absent */
void msg_close_fds(struct msg *m);
int msg_recv(int fd, struct msg *m); /* bytes, 0 at end, -1 */
struct out {
	char buf[4096];
	size_t len;
};
void out_field(struct out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int out_send(struct out *o, int fd, int passfd);
void reply_ok(struct out *o, const char *seq);
void reply_err(int fd, const char *seq, int err, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* logfile.c */
int64_t unix_ns(void);
int64_t mono_ns(void);
int log_used(void);  /* buffers were touched since log_idle */
void log_idle(void); /* gives their memory back */
void log_open(struct ct *c);
int log_reopen(struct ct *c);
/* Reads once; 1 data, 0 nothing now, -1 end of the stream. */
int stream_read(struct stream *s, size_t max);
void stream_close(struct stream *s);
void stream_drain(struct stream *s);

/* attach.c */
int attach_add(struct stream *s, int fd, int patient);
void attach_feed(struct stream *s, const char *p, size_t n);
void attach_ready(struct attach *a);
void attach_drop_all(struct stream *s);
int attach_timeout_ms(void); /* until the next deadline; -1 none */
void attach_expire(void);

/* container.c */
extern struct ct *cts;
struct ct *ct_find(const char *id);
void ct_start(struct conn *cn, struct msg *m, const char *seq);
void ct_exec(struct conn *cn, struct msg *m, const char *seq);
void ct_status_readable(struct ct *c);
void ct_reap(void);
void ct_forget(struct ct *c);
void ct_describe(struct ct *c, struct out *o);
int ct_kill(struct ct *c, int sig, int all);
int ct_running(void);

/* server.c */
extern pid_t nsinit;
extern int64_t pod_started;
int watch(struct src *s, uint32_t events);
void rewatch(struct src *s, uint32_t events);
void unwatch(struct src *s); /* and closes */
void broadcast(struct out *o);
int serve(int listener, int keeper);
int listen_at(const char *name);

/* pod.c */
extern int own_users; /* the pod has a user namespace, at USERNS_FD */
int pod_setup(int argc, char **argv, char *errbuf, size_t n);

#endif
