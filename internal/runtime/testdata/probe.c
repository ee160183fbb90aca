/* Asks for what a filter may refuse, and prints the errno of each. What is asked
 * for comes to nothing also where it is allowed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long r)
{
	printf("%s=%s\n", name, r < 0 ? strerrorname_np(errno) : "0");
	fflush(stdout);
}

/* Through the i386 entry, whose numbers are others: keyctl is 288. */
static long compat(long nr)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(0xffff), "c"(0), "d"(0), "S"(0) : "memory", "r8", "r9", "r10", "r11");
	if (r < 0) {
		errno = -r;
		return -1;
	}
	return r;
}

int main(void)
{
	say("keyctl", syscall(SYS_keyctl, 0xffff, 0, 0, 0, 0));
	say("add_key", syscall(SYS_add_key, 0, 0, 0, 0, 0));
	say("io_uring_setup", syscall(SYS_io_uring_setup, 0, 0));
	say("clone3", syscall(SYS_clone3, 0, 0));
	say("unknown", syscall(5000));
	say("vsock", socket(40, SOCK_STREAM, 0));
	say("personality", personality(0x0400000));
	say("quotactl", syscall(SYS_quotactl, -1, 0, 0, 0));
	say("mkdir", syscall(SYS_mkdir, "", 0));
	say("compat_keyctl", compat(288));
	pid_t p = fork();
	if (!p) {
		say("unshare_user", unshare(CLONE_NEWUSER));
		_exit(0);
	}
	waitpid(p, NULL, 0);
	say("unshare_fs", unshare(CLONE_FS));
	say("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) ? -(errno = EEXIST) : 0);
	printf("seccomp=%d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
	return 0;
}
