/* Signal actions with their flags and masks, the blocked mask of each thread, alternate stacks of each thread. */
#include "guest.h"
#include <ucontext.h>

static char stacks[2][4 * 16384];
static volatile unsigned long handler_sp[2];
static volatile int handled, info_code, info_value;
static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void on_alt(UNUSED int sig)
{
	volatile char here;

	handler_sp[0] = (unsigned long)&here;
	handled++;
}

static void on_info(UNUSED int sig, siginfo_t *si, UNUSED void *uc)
{
	sigset_t now;

	info_code = si->si_code;
	info_value = si->si_value.sival_int;
	sigprocmask(SIG_BLOCK, NULL, &now);
	/* The action's own mask blocks SIGWINCH while it runs. */
	if (sigismember(&now, SIGWINCH))
		handled += 100;
}

static void altstack(int n)
{
	stack_t ss = { .ss_sp = stacks[n], .ss_size = sizeof(stacks[n]) };

	MUST(sigaltstack(&ss, NULL));
}

static void check_altstack(int n)
{
	stack_t ss;

	MUST(sigaltstack(NULL, &ss));
	CHECK(ss.ss_sp == stacks[n], "alternate stack %d is at %p, not %p", n, ss.ss_sp, stacks[n]);
	SAME("size of the alternate stack", ss.ss_size, sizeof(stacks[n]));
	SAME("flags of the alternate stack", ss.ss_flags, 0);
}

static void *thread(UNUSED void *arg)
{
	sigset_t set, now;

	sigfillset(&set);
	sigdelset(&set, SIGUSR2);
	sigdelset(&set, SIGHUP);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	altstack(1);
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	if (SPOIL("thread-mask")) {
		sigset_t one;

		sigemptyset(&one);
		sigaddset(&one, SIGUSR2);
		pthread_sigmask(SIG_BLOCK, &one, NULL);
	}
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	CHECK(!memcmp(&now, &set, 8), "mask of the thread changed");
	check_altstack(1);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction sa, was[65], now;
	sigset_t set, mask;
	pthread_t t;

	guest_init(argc, argv);
	memset(&sa, 0, sizeof(sa));
	sa.sa_handler = on_alt;
	sa.sa_flags = SA_ONSTACK | SA_RESTART | SA_NODEFER;
	MUST(sigaction(SIGUSR1, &sa, NULL));
	memset(&sa, 0, sizeof(sa));
	sa.sa_sigaction = on_info;
	sa.sa_flags = SA_SIGINFO | SA_RESETHAND;
	sigaddset(&sa.sa_mask, SIGWINCH);
	MUST(sigaction(SIGRTMIN + 3, &sa, NULL));
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	sa.sa_flags = SA_SIGINFO | SA_NOCLDSTOP | SA_NOCLDWAIT;
	MUST(sigaction(SIGCHLD, &sa, NULL));
	for (int s = 1; s < 65; s++)
		if (s != 32 && s != 33)
			MUST(sigaction(s, NULL, &was[s]));
	altstack(0);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGRTMAX);
	sigaddset(&set, SIGTERM);
	MUST(sigprocmask(SIG_SETMASK, &set, NULL));
	pthread_barrier_init(&built, NULL, 2);
	pthread_mutex_lock(&gate);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "no thread");
	pthread_barrier_wait(&built);
	guest_ready_wait();

	if (SPOIL("action"))
		signal(SIGPIPE, SIG_DFL);
	if (SPOIL("flags")) {
		sa.sa_handler = on_alt;
		sa.sa_flags = SA_ONSTACK;
		sigaction(SIGUSR1, &sa, NULL);
	}
	if (SPOIL("mask"))
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	if (SPOIL("altstack"))
		sigaltstack(&(stack_t){ .ss_flags = SS_DISABLE }, NULL);
	for (int s = 1; s < 65; s++) {
		if (s == 32 || s == 33)
			continue;
		MUST(sigaction(s, NULL, &now));
		CHECK(now.sa_handler == was[s].sa_handler, "handler of signal %d changed", s);
		CHECK(now.sa_flags == was[s].sa_flags, "flags of signal %d are 0x%x, not 0x%x", s, now.sa_flags, was[s].sa_flags);
		CHECK(!memcmp(&now.sa_mask, &was[s].sa_mask, 8), "mask of signal %d changed", s);
		CHECK(now.sa_restorer == was[s].sa_restorer, "restorer of signal %d changed", s);
	}
	MUST(sigprocmask(SIG_BLOCK, NULL, &mask));
	CHECK(!memcmp(&mask, &set, 8), "mask of the first thread changed");
	check_altstack(0);
	raise(SIGUSR1);
	SAME("handler ran", handled, 1);
	CHECK(handler_sp[0] > (unsigned long)stacks[0] && handler_sp[0] < (unsigned long)stacks[1], "the handler ran on another stack");
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 99 }));
	SAME("siginfo handler ran with its mask", handled, 101);
	SAME("si_code", info_code, SI_QUEUE);
	SAME("si_value", info_value, 99);
	MUST(sigaction(SIGRTMIN + 3, NULL, &now));
	CHECK(now.sa_handler == SIG_DFL, "SA_RESETHAND did not reset");
	pthread_mutex_unlock(&gate);
	pthread_join(t, NULL);
	guest_pass();
}
