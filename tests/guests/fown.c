/* Who gets SIGIO: F_SETOWN (task, group), F_SETSIG, the uids kept with it, O_ASYNC, and that it really comes. */
#include "guest.h"

static volatile int got, from_fd;

static void on_io(UNUSED int sig, siginfo_t *si, UNUSED void *uc)
{
	got++;
	from_fd = si->si_fd;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_sigaction = on_io, .sa_flags = SA_SIGINFO };
	int pid_owned[2], group_owned[2], thread_owned[2];
	struct f_owner_ex ex = { F_OWNER_TID, 0 }, now;

	guest_init(argc, argv);
	MUST(sigaction(SIGRTMIN + 4, &sa, NULL));
	signal(SIGIO, SIG_IGN);
	MUST(pipe(pid_owned));
	MUST(fcntl(pid_owned[0], F_SETOWN, getpid()));
	MUST(fcntl(pid_owned[0], F_SETSIG, SIGRTMIN + 4));
	MUST(fcntl(pid_owned[0], F_SETFL, O_ASYNC | O_NONBLOCK));
	MUST(pipe(group_owned));
	MUST(fcntl(group_owned[0], F_SETOWN, -getpgrp()));
	MUST(pipe(thread_owned));
	ex.pid = getpid();
	MUST(fcntl(thread_owned[1], F_SETOWN_EX, &ex));
	guest_ready_wait();
	if (SPOIL("owner"))
		fcntl(pid_owned[0], F_SETOWN, 0);
	if (SPOIL("signal"))
		fcntl(pid_owned[0], F_SETSIG, 0);
	if (SPOIL("async"))
		fcntl(pid_owned[0], F_SETFL, O_NONBLOCK);
	if (SPOIL("group"))
		fcntl(group_owned[0], F_SETOWN, getpid());
	if (SPOIL("thread"))
		fcntl(thread_owned[1], F_SETOWN, getpid());
	SAME("owner", fcntl(pid_owned[0], F_GETOWN), getpid());
	SAME("signal", fcntl(pid_owned[0], F_GETSIG), SIGRTMIN + 4);
	SAME("flags", fcntl(pid_owned[0], F_GETFL), O_RDONLY | O_ASYNC | O_NONBLOCK);
	MUST(fcntl(group_owned[0], F_GETOWN_EX, &now));
	SAME("kind of owner (group)", now.type, F_OWNER_PGRP);
	SAME("owning group", now.pid, getpgrp());
	SAME("signal of the group's", fcntl(group_owned[0], F_GETSIG), 0);
	MUST(fcntl(thread_owned[1], F_GETOWN_EX, &now));
	SAME("kind of owner (thread)", now.type, F_OWNER_TID);
	SAME("owning thread", now.pid, getpid());
	SAME("written", write(pid_owned[1], "x", 1), 1);
	SAME("signals", got, 1);
	SAME("descriptor in the signal", from_fd, pid_owned[0]);
	guest_pass();
}
