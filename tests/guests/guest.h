/*
 * The tiny library every guest program is built on.
 *
 * A guest builds one state of the kernel, says "ready", sleeps until it is told to go on, checks that the state is
 * still there, and reports. Whoever freezes and restores it does so while it sleeps; run alone it must pass too, which
 * makes the plain run the oracle. The talk goes through files in a work folder only (no sockets, no shared memory), so
 * that a guest needs nothing from the engine except the kind it is about:
 *
 *   argv[1]  the work folder (absolute)       ready   written by the guest: its pid
 *   argv[2]  "-", or the name of a spoil      result  written by the guest: "PASS", "FAIL: why" or "SKIP: why"
 *   argv[3.] parameters of the guest          why     appended by any task of the tree that fails
 *   SIGTERM  go on and verify                 exit    0 pass or skip, 1 fail
 *
 * A spoil is a named wrong: `if (SPOIL("offset")) lseek(...)` placed just before the check it must trip. The harness
 * reads the names out of the source and runs each; a spoil which does not end in FAIL means a check that cannot fail.
 */
#ifndef GUEST_H
#define GUEST_H
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define UNUSED __attribute__((unused))

static const char *guest_dir;
static const char *guest_spoil = "-";
static int guest_argc;
static char **guest_argv;
/* The pid of the root of the tree: only this task writes `ready` and `result`. */
static pid_t guest_root;
/* In a child that has not yet reported: where to say that its state is built. */
static int guest_sync = -1;

/* A path in the work folder. The answer lives in one of eight rotating buffers. */
static inline const char *guest_path(const char *name)
{
	static __thread char buf[8][PATH_MAX];
	static __thread unsigned next;
	char *p = buf[next++ % 8];

	snprintf(p, PATH_MAX, "%s/%s", guest_dir, name);
	return p;
}

/* Writes a file of the protocol in one piece: readers see all of it or nothing. */
static inline void guest_tell(const char *name, const char *text)
{
	const char *tmp = guest_path("tell.tmp");
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) || rename(tmp, guest_path(name))) {
		fprintf(stderr, "guest: cannot write %s: %s\n", name, strerror(errno));
		_exit(2);
	}
}

/* Any task and thread of the tree may call this; it ends the task. */
_Noreturn static inline void guest_fail(const char *fmt, ...)
{
	char why[1024] = "FAIL: ";
	va_list ap;
	int fd;

	va_start(ap, fmt);
	vsnprintf(why + 6, sizeof(why) - 7, fmt, ap);
	va_end(ap);
	strcat(why, "\n");
	if (getpid() == guest_root) {
		guest_tell("result", why);
	} else {
		fd = open(guest_path("why"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
		if (fd >= 0 && write(fd, why, strlen(why)) < 0)
			_exit(2);
	}
	_exit(1);
}

#define CHECK(cond, ...)                                                                                               \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			guest_fail(__VA_ARGS__);                                                                       \
	} while (0)
/* A call that builds state and cannot fail on a healthy machine; -1 is its failure. Gives the call's value. */
#define MUST(call)                                                                                                     \
	({                                                                                                             \
		long must_ = (long)(call);                                                                             \
		if (must_ == -1)                                                                                       \
			guest_fail("line %d: %s: %s", __LINE__, #call, strerror(errno));                               \
		must_;                                                                                                 \
	})
/* Two numbers must be equal; both are shown when they are not. */
#define SAME(what, is, was)                                                                                            \
	do {                                                                                                           \
		long long is_ = (long long)(is), was_ = (long long)(was);                                              \
		CHECK(is_ == was_, "%s is %lld (0x%llx), not %lld (0x%llx)", what, is_, is_, was_, was_);              \
	} while (0)

static inline int SPOIL(const char *name)
{
	return !strcmp(guest_spoil, name);
}

/* This machine cannot build the state at all: the case is neither passed nor failed. */
_Noreturn static inline void guest_skip(const char *why)
{
	char text[512];

	snprintf(text, sizeof(text), "SKIP: %s\n", why);
	guest_tell("result", text);
	_exit(0);
}

_Noreturn static inline void guest_pass(void)
{
	char why[1024] = "";
	int fd = open(guest_path("why"), O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, why, sizeof(why) - 1) <= 6)
			strcpy(why, "FAIL: unreadable reason");
		guest_fail("in a child: %s", why + 6);
	}
	guest_tell("result", "PASS\n");
	_exit(0);
}

/* First call of every main(): own session (unless GUEST_KEEPS_SESSION is defined), SIGTERM blocked in this and all later tasks and threads. */
static inline void guest_init(int argc, char **argv)
{
	sigset_t set;

	if (argc < 2) {
		fprintf(stderr, "usage: %s FOLDER [SPOIL|-] [ARG...]\n", argv[0]);
		exit(2);
	}
	guest_dir = argv[1];
	if (argc > 2)
		guest_spoil = argv[2];
	guest_argc = argc;
	guest_argv = argv;
	guest_root = getpid();
#ifndef GUEST_KEEPS_SESSION
	setsid();
#endif
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* A namespace of its own. In a container (which the harness names so) the guest uses the container's. */
static inline void guest_unshare(int flags)
{
	char name[65] = "";

	gethostname(name, sizeof(name) - 1);
	if (strcmp(name, "contained"))
		MUST(unshare(flags));
}

/* Parameter number n (from 0) as a number, or the given value when it is absent. */
static inline long guest_arg(int n, long otherwise)
{
	return guest_argc > 3 + n ? atol(guest_argv[3 + n]) : otherwise;
}

/* Root: the state of the whole tree is built. */
static inline void guest_ready(void)
{
	char text[32];

	snprintf(text, sizeof(text), "%d\n", getpid());
	guest_tell("ready", text);
}

/* Sleeps until SIGTERM. A freeze makes the wait end early with EINTR: then it goes on waiting. */
static inline void guest_wait(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	while (sigwaitinfo(&set, NULL) != SIGTERM)
		;
}

static inline void guest_ready_wait(void)
{
	guest_ready();
	guest_wait();
}

/* Child: my state is built; sleep until my parent tells me to verify. */
static inline void guest_child_ready_wait(void)
{
	if (write(guest_sync, "+", 1) != 1)
		_exit(3);
	close(guest_sync);
	guest_sync = -1;
	guest_wait();
}

/*
 * Forks a child that runs body(arg) and leaves with 0 when that returns. The body calls guest_child_ready_wait() once;
 * this returns in the parent after that. `flags` are clone flags besides SIGCHLD (0 for a plain fork).
 */
static inline pid_t guest_child_flags(void (*body)(void *), void *arg, unsigned long flags)
{
	int sync[2];
	pid_t pid;
	char c;

	MUST(pipe2(sync, O_CLOEXEC));
	pid = flags ? syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0) : fork();
	MUST(pid);
	if (!pid) {
		close(sync[0]);
		if (guest_sync >= 0)
			close(guest_sync);
		guest_sync = sync[1];
		body(arg);
		_exit(0);
	}
	close(sync[1]);
	CHECK(read(sync[0], &c, 1) == 1, "child %d ended before it was ready", pid);
	close(sync[0]);
	return pid;
}

static inline pid_t guest_child(void (*body)(void *), void *arg)
{
	return guest_child_flags(body, arg, 0);
}

/* Tells a child made by guest_child() to verify, and waits for its verdict. */
static inline void guest_child_finish(pid_t pid)
{
	char why[1024] = "";
	int status, fd;

	MUST(kill(pid, SIGTERM));
	CHECK(waitpid(pid, &status, 0) == pid, "child %d is not my child: %s", pid, strerror(errno));
	if (status == 0)
		return;
	fd = open(guest_path("why"), O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, why, sizeof(why) - 1) > 6)
		guest_fail("child %d: %.*s", pid, (int)strcspn(why + 6, "\n"), why + 6);
	guest_fail("child %d ended with status 0x%x", pid, status);
}

/* Body of a child with nothing of its own. */
static inline void guest_idle(UNUSED void *arg)
{
	guest_child_ready_wait();
}

/* Reads a whole (small) file as text; empty when it cannot be read. One static buffer. */
static inline const char *guest_slurp(const char *path)
{
	static char buf[1 << 18];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	while (fd >= 0 && len < sizeof(buf) - 1 && (n = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += n;
	buf[len] = 0;
	if (fd >= 0)
		close(fd);
	return buf;
}

/* The number behind "key:" in /proc/self/status style text (any base strtoull knows; hex when base is 16). */
static inline unsigned long long guest_field(const char *text, const char *key, int base)
{
	const char *p = strstr(text, key);

	CHECK(p, "no line %s", key);
	return strtoull(p + strlen(key), NULL, base);
}

/* A page-wise pattern that differs for every seed and page, so that swapped pages are seen. */
static inline void guest_fill(void *mem, size_t len, unsigned seed)
{
	uint32_t *p = mem;

	for (size_t i = 0; i < len / 4; i++)
		p[i] = (uint32_t)(i * 2654435761u) ^ seed;
}

/* 1 when the memory still holds guest_fill()'s pattern. */
static inline int guest_filled(const void *mem, size_t len, unsigned seed)
{
	const uint32_t *p = mem;

	for (size_t i = 0; i < len / 4; i++)
		if (p[i] != ((uint32_t)(i * 2654435761u) ^ seed))
			return 0;
	return 1;
}

/* The VmFlags line of the mapping that holds addr ("" if there is none). One static buffer. */
static inline const char *guest_vmflags(const void *addr)
{
	static char line[4096];
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long from, to;
	int here = 0;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from <= (unsigned long)addr && (unsigned long)addr < to;
		else if (here && !strncmp(line, "VmFlags:", 8)) {
			fclose(f);
			return line;
		}
	}
	if (f)
		fclose(f);
	return "";
}

/* 1 when the mapping that holds addr carries the two-letter flag. */
static inline int guest_vmflag(const void *addr, const char *flag)
{
	char word[8];

	snprintf(word, sizeof(word), " %s", flag);
	return strstr(guest_vmflags(addr), word) != NULL;
}

/* The head line of the mapping that holds addr in /proc/self/maps ("" if there is none). One static buffer. */
static inline const char *guest_map(const void *addr)
{
	static char line[4096];
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long from, to;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2 && from <= (unsigned long)addr && (unsigned long)addr < to) {
			fclose(f);
			return line;
		}
	if (f)
		fclose(f);
	return "";
}
#endif
