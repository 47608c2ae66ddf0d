/*
 * What is measured: load KIND N M K FILE
 *
 *   trivial            nothing
 *   tree N             N processes, each with 64 KiB of its own
 *   threads N          N threads
 *   files N M K        N files, M pipes with three bytes in each, K socket pairs with four bytes on their way
 *   dirty N            N MiB of anonymous memory, every page different
 *   maps N             N mappings of a page, every other one with something in it
 *   beat N             as dirty, and FILE.beat counts every 100 us, which shows when it came back to life
 *   writer N M         as dirty; one word of a random page of the first M MiB is written after another: FILE.beat counts
 *   connections N      N TCP connections to a process that is not a child any more, with four unread bytes in each
 *
 * Writes "ready" to FILE when the state is built. At SIGTERM it checks the state, writes "ok" or what is wrong to FILE,
 * and ends. FILE is opened anew each time, so it is no part of the state.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *report;
static volatile sig_atomic_t told;

static void on_term(int sig)
{
	(void)sig;
	told = 1;
}

static void say(const char *words)
{
	char part[4096];
	int fd;

	/* appears whole: the reader polls for it */
	snprintf(part, sizeof(part), "%s.part", report);
	fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, words, strlen(words)) < 0 || close(fd) || rename(part, report))
		_exit(3);
}

static void fail(const char *words)
{
	say(words);
	_exit(1);
}

static void wait_told(void)
{
	sigset_t block, old;

	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, &old);
	sigdelset(&old, SIGTERM);
	while (!told)
		sigsuspend(&old);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

static uint64_t mark(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull;
}

static uint64_t *fill(size_t pages)
{
	uint64_t *m = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (m == MAP_FAILED)
		fail("mmap");
	for (size_t p = 0; p < pages; p++)
		for (size_t w = 0; w < 512; w++)
			m[p * 512 + w] = mark(p) ^ w;
	return m;
}

static void check_fill(const uint64_t *m, size_t pages)
{
	for (size_t p = 0; p < pages; p++)
		for (size_t w = 0; w < 512; w++)
			if (m[p * 512 + w] != (mark(p) ^ w))
				fail("memory differs");
}

/* the counter in FILE.beat: the harness reads it while we run */
static volatile uint64_t *beats(void)
{
	char path[4096];
	void *b;
	int fd;

	snprintf(path, sizeof(path), "%s.beat", report);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		fail("beat");
	b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (b == MAP_FAILED)
		fail("beat");
	return b;
}

static void beat(size_t pages)
{
	volatile uint64_t *count = beats();
	struct timespec nap = { .tv_nsec = 100000 };
	uint64_t *mem = fill(pages);

	say("ready");
	while (!told) {
		nanosleep(&nap, NULL);
		++*count;
	}
	check_fill(mem, pages);
}

static void writer(size_t pages, size_t hot)
{
	volatile uint64_t *told_count = beats();
	uint64_t *mem = fill(pages), x = 88172645463325252ull, count = 0;

	say("ready");
	while (!told) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		mem[x % hot * 512 + 1] = ++count;
		if (!(count & 255))
			*told_count = count;
	}
	for (size_t p = 0; p < pages; p++) {
		if (p < hot && mem[p * 512 + 1] <= count)
			mem[p * 512 + 1] = mark(p) ^ 1;
	}
	check_fill(mem, pages);
}

static void *sleeper(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void tree(long n)
{
	pid_t *kids = calloc(n, sizeof(*kids));
	int up[2];
	char c;

	if (pipe(up))
		fail("pipe");
	for (long i = 1; i < n; i++) {
		kids[i] = fork();
		if (kids[i] < 0)
			fail("fork");
		if (!kids[i]) {
			uint64_t *m = fill(16);

			if (write(up[1], "x", 1) != 1)
				_exit(2);
			close(up[0]);
			close(up[1]);
			wait_told();
			check_fill(m, 16);
			_exit(42);
		}
	}
	for (long i = 1; i < n; i++)
		if (read(up[0], &c, 1) != 1)
			fail("a child did not start");
	close(up[0]);
	close(up[1]);
	/* children close their ends after they wrote: let them */
	usleep(20000);
	say("ready");
	wait_told();
	for (long i = 1; i < n; i++) {
		int status;

		if (kill(kids[i], SIGTERM) || waitpid(kids[i], &status, 0) != kids[i])
			fail("a child is lost");
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 42)
			fail("a child's memory differs");
	}
}

static void threads(long n)
{
	pthread_attr_t attr;
	pthread_t t;
	char words[64];
	sigset_t block;

	/* SIGTERM is for the main thread: only it waits to be told */
	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	for (long i = 1; i < n; i++)
		if (pthread_create(&t, &attr, sleeper, NULL))
			fail("pthread_create");
	usleep(50000);
	say("ready");
	wait_told();
	snprintf(words, sizeof(words), "/proc/self/task/%d", getpid());
	if (access(words, F_OK))
		fail("no such task");
}

static void many_files(void)
{
	struct rlimit lim;

	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
}

static void files(long n, long m, long k)
{
	int *fds = calloc(n, sizeof(*fds)), (*ends)[2] = calloc(m, sizeof(*ends));
	int (*pairs)[2] = calloc(k, sizeof(*pairs));
	char buf[4096];

	many_files();
	for (long i = 0; i < n; i++) {
		snprintf(buf, sizeof(buf), "%s.%ld", report, i);
		fds[i] = open(buf, O_RDWR | O_CREAT, 0600);
		if (fds[i] < 0 || write(fds[i], buf, i % 100 + 1) != i % 100 + 1)
			fail("open");
	}
	for (long i = 0; i < m; i++)
		if (pipe(ends[i]) || write(ends[i][1], "abc", 3) != 3)
			fail("pipe");
	for (long i = 0; i < k; i++)
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]) || write(pairs[i][1], "abcd", 4) != 4)
			fail("socketpair");
	say("ready");
	wait_told();
	for (long i = 0; i < n; i++)
		if (lseek(fds[i], 0, SEEK_CUR) != i % 100 + 1)
			fail("a file's position differs");
	for (long i = 0; i < m; i++)
		if (read(ends[i][0], buf, 8) != 3 || memcmp(buf, "abc", 3))
			fail("a pipe's contents differ");
	for (long i = 0; i < k; i++)
		if (read(pairs[i][0], buf, 8) != 4 || memcmp(buf, "abcd", 4))
			fail("what was on its way in a socket differs");
}

static void maps(long n)
{
	char *m = mmap(NULL, n * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (m == MAP_FAILED)
		fail("mmap");
	for (long i = 0; i < n; i += 2) {
		if (mprotect(m + i * 4096, 4096, PROT_READ | PROT_WRITE))
			fail("mprotect");
		*(uint64_t *)(m + i * 4096) = mark(i);
	}
	say("ready");
	wait_told();
	for (long i = 0; i < n; i += 2)
		if (*(uint64_t *)(m + i * 4096) != mark(i))
			fail("a mapping differs");
}

static int loopback(struct sockaddr_in *at)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	socklen_t len = sizeof(*at);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo) || bind(fd, (void *)at, len) || listen(fd, 1024))
		fail("a listening socket");
	if (getsockname(fd, (void *)at, &len))
		fail("getsockname");
	return fd;
}

/* sends what comes back, until all connections have ended */
static void echo(const struct sockaddr_in *at, long n)
{
	int poll = epoll_create1(0);

	for (long i = 0; i < n; i++) {
		struct epoll_event e = { .events = EPOLLIN };

		e.data.fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(e.data.fd, (void *)at, sizeof(*at)) || write(e.data.fd, "abcd", 4) != 4)
			_exit(2);
		epoll_ctl(poll, EPOLL_CTL_ADD, e.data.fd, &e);
	}
	for (long open = n; open > 0;) {
		struct epoll_event e;
		char c;

		if (epoll_wait(poll, &e, 1, -1) != 1)
			continue;
		if (read(e.data.fd, &c, 1) != 1 || write(e.data.fd, &c, 1) != 1) {
			close(e.data.fd);
			open--;
		}
	}
	_exit(0);
}

static void connections(long n)
{
	struct sockaddr_in at;
	int *fds = calloc(n, sizeof(*fds));
	int listener;
	pid_t mid;

	many_files();
	listener = loopback(&at);
	mid = fork();
	if (!mid) {
		close(listener);
		if (fork())
			_exit(0);
		setsid();
		echo(&at, n);
	}
	if (waitpid(mid, NULL, 0) != mid)
		fail("the other end does not start");
	for (long i = 0; i < n; i++) {
		char c[4];

		fds[i] = accept(listener, NULL, NULL);
		if (fds[i] < 0 || recv(fds[i], c, 4, MSG_PEEK | MSG_WAITALL) != 4)
			fail("accept");
	}
	say("ready");
	wait_told();
	for (long i = 0; i < n; i++) {
		char c[8];

		if (write(fds[i], "x", 1) != 1 || recv(fds[i], c, 5, MSG_WAITALL) != 5 || memcmp(c, "abcdx", 5))
			fail("a connection differs");
	}
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_term };
	long n, m, k;

	if (argc != 6)
		return 2;
	n = atol(argv[2]);
	m = atol(argv[3]);
	k = atol(argv[4]);
	report = argv[5];
	/* whatever a build tool left open is not what is measured */
	syscall(SYS_close_range, 3, ~0U, 0);
	setsid();
	sigaction(SIGTERM, &sa, NULL);
	if (!strcmp(argv[1], "trivial")) {
		say("ready");
		wait_told();
	} else if (!strcmp(argv[1], "tree")) {
		tree(n);
	} else if (!strcmp(argv[1], "threads")) {
		threads(n);
	} else if (!strcmp(argv[1], "files")) {
		files(n, m, k);
	} else if (!strcmp(argv[1], "maps")) {
		maps(n);
	} else if (!strcmp(argv[1], "connections")) {
		connections(n);
	} else if (!strcmp(argv[1], "dirty")) {
		uint64_t *mem = fill(n * 256);

		say("ready");
		wait_told();
		check_fill(mem, n * 256);
	} else if (!strcmp(argv[1], "beat")) {
		beat(n * 256);
	} else if (!strcmp(argv[1], "writer")) {
		writer(n * 256, m * 256);
	} else {
		return 2;
	}
	say("ok");
	return 0;
}
