/*
 * Threads that sleep in system calls of every restart kind while they are frozen. read, futex, wait4 and absolute sleeps
 * go on as if nothing had happened; what the kernel restarts by its own notes (relative sleeps, poll) may end with EINTR
 * as after any stop, but never with a wrong success.
 */
#include "guest.h"
#include <linux/futex.h>

static int data[2], polled[2], kid_gate[2];
static int word;
static pid_t kid;
static struct timespec until;
static volatile int awake;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void *in_read(UNUSED void *arg)
{
	char c = 0;

	SAME("read", read(data[0], &c, 1), 1);
	SAME("byte", c, 'r');
	return NULL;
}

static void *in_futex(UNUSED void *arg)
{
	long ret = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);

	/* the call may be made again only after the word was changed; then it says so */
	CHECK((!ret || errno == EAGAIN) && word == 1, "futex: %ld, errno %s, word %d", ret, strerror(errno), word);
	return NULL;
}

static void *in_wait(UNUSED void *arg)
{
	int status = 0;

	SAME("wait4", syscall(SYS_wait4, kid, &status, 0, NULL), kid);
	SAME("status", status, 9 << 8);
	return NULL;
}

static void *in_absolute(UNUSED void *arg)
{
	int err = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);

	SAME("absolute sleep", err, 0);
	CHECK(now() >= until.tv_sec + until.tv_nsec / 1e9, "the absolute sleep ended too early");
	return NULL;
}

static void *in_relative(UNUSED void *arg)
{
	struct timespec t = { 0, 700000000 }, left = { 0, 0 };
	double start = now();
	int ret;

	while ((ret = nanosleep(&t, &left)) == -1 && errno == EINTR)
		t = left;
	SAME("relative sleep", ret, 0);
	/* Time while frozen need not count: never shorter than asked for, never absurdly longer. */
	if (SPOIL("sleep"))
		start = now();
	CHECK(now() - start >= 0.699 && now() - start < 15, "a sleep of 0.7 s took %f s", now() - start);
	return NULL;
}

static void *in_poll(UNUSED void *arg)
{
	struct pollfd p = { polled[0], POLLIN, 0 };
	int ret;

	while ((ret = poll(&p, 1, 60000)) == -1 && errno == EINTR)
		;
	SAME("poll", ret, 1);
	SAME("polled event", p.revents, POLLIN);
	CHECK(awake, "poll ended before there was anything");
	return NULL;
}

int main(int argc, char **argv)
{
	void *(*const all[])(void *) = { in_read, in_futex, in_wait, in_absolute, in_relative, in_poll };
	enum { N = sizeof(all) / sizeof(*all) };
	pthread_t t[N];
	char c;

	guest_init(argc, argv);
	MUST(pipe(data));
	MUST(pipe(polled));
	MUST(pipe(kid_gate));
	kid = MUST(fork());
	if (!kid) {
		close(kid_gate[1]);
		while (read(kid_gate[0], &c, 1) == 1)
			;
		_exit(SPOIL("status") ? 8 : 9);
	}
	close(kid_gate[0]);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 1;
	for (int i = 0; i < N; i++)
		CHECK(!pthread_create(&t[i], NULL, all[i], NULL), "no thread");
	/* Until all of them sleep. */
	usleep(50000);
	guest_ready_wait();
	if (SPOIL("interrupted"))
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	if (SPOIL("byte"))
		SAME("written", write(data[1], "x", 1), 1);
	if (SPOIL("poll")) {
		SAME("written", write(polled[1], "p", 1), 1);
		usleep(20000);
	}
	awake = 1;
	SAME("written", write(data[1], "r", 1), 1);
	SAME("written", write(polled[1], "p", 1), 1);
	if (SPOIL("interrupted"))
		usleep(20000);
	__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	close(kid_gate[1]);
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	guest_pass();
}
