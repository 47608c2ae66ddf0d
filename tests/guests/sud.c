/* Syscall user dispatch: calls from outside of the allowed range become SIGSYS while the selector byte blocks. */
#include "guest.h"

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector;
static volatile int caught, number;

/* Runs with the selector at "allow": glibc's restorer makes a system call from glibc's text, which is allowed anyway. */
static void on_sys(UNUSED int sig, siginfo_t *si, UNUSED void *uc)
{
	selector = 0;
	caught++;
	number = si->si_syscall;
}

/* A system call from this program's own text, which is outside of the allowed range (glibc's). */
static long own_getppid(void)
{
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "0"(SYS_getppid) : "rcx", "r11", "memory");
	return ret;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_sigaction = on_sys, .sa_flags = SA_SIGINFO };
	unsigned long from, to;

	guest_init(argc, argv);
	MUST(sigaction(SIGSYS, &sa, NULL));
	/* Allowed: the text mapping of glibc. */
	CHECK(sscanf(guest_map((void *)syscall), "%lx-%lx", &from, &to) == 2, "where is glibc?");
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, from, to - from, &selector))
		guest_skip("no syscall user dispatch");
	selector = 1;
	own_getppid();
	SAME("caught before", caught, 1);
	guest_ready_wait();
	if (SPOIL("off"))
		prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0);
	SAME("allowed", own_getppid(), getppid());
	SAME("caught while allowed", caught, 1);
	selector = 1;
	own_getppid();
	selector = 0;
	SAME("caught after", caught, 2);
	SAME("number of the call", number, SYS_getppid);
	guest_pass();
}
