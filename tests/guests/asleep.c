/*
 * Threads that sleep for hours in calls the kernel restarts by its own notes or by their arguments. A dump that goes wrong
 * must not wake one of them with a success or with an error other than EINTR: after EINTR, which any stop may give them,
 * they go to sleep again.
 */
#include "guest.h"
#include <linux/futex.h>
#include <sys/epoll.h>

enum { N = 7 };
static volatile int woke[N];
static volatile long how[N];
static int word, nothing[2], ep;
static const struct timespec hours = { 36000, 0 };

static void *sleeper(void *arg)
{
	long n = (long)arg, ret = 0;
	struct pollfd p = { nothing[0], POLLIN, 0 };
	struct epoll_event ev;
	fd_set set;
	char c;

	FD_ZERO(&set);
	FD_SET(nothing[0], &set);
	switch (n) {
	case 0: while ((ret = syscall(SYS_nanosleep, &hours, NULL)) == -1 && errno == EINTR); break;
	case 1: while ((ret = syscall(SYS_poll, &p, 1, 36000000)) == -1 && errno == EINTR); break;
	case 2: while ((ret = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &hours, NULL, 0)) == -1 && errno == EINTR); break;
	case 3: while ((ret = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &hours, NULL)) == -1 && errno == EINTR); break;
	case 4: ret = syscall(SYS_pselect6, nothing[0] + 1, &set, NULL, NULL, NULL, NULL); break;
	case 5: ret = read(nothing[0], &c, 1); break;
	case 6: while ((ret = epoll_wait(ep, &ev, 1, -1)) == -1 && errno == EINTR); break;
	}
	how[n] = ret < 0 ? -errno : ret;
	woke[n] = 1;
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	struct epoll_event ev = { EPOLLIN, { 0 } };
	pthread_t t;

	guest_init(argc, argv);
	MUST(pipe(nothing));
	ep = MUST(epoll_create1(0));
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, nothing[0], &ev));
	for (long i = 0; i < N; i++)
		CHECK(!pthread_create(&t, NULL, sleeper, (void *)i), "no thread");
	usleep(50000);
	guest_ready_wait();
	if (SPOIL("woken"))
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	usleep(20000);
	for (int i = 0; i < N; i++)
		CHECK(!woke[i], "sleeper %d woke with %ld", i, how[i]);
	guest_pass();
}
