/* pidfds: of the task itself, of a child that lives, of one that ended but was not waited for. */
#include "guest.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

int main(int argc, char **argv)
{
	int own, kid_fd, dead_fd, flags;
	struct pollfd p;
	pid_t kid, dead;
	siginfo_t si;
	char path[64];

	guest_init(argc, argv);
	kid = guest_child(guest_idle, NULL);
	dead = MUST(fork());
	if (!dead)
		_exit(3);
	MUST(waitid(P_PID, dead, &si, WEXITED | WNOWAIT));
	own = MUST(syscall(SYS_pidfd_open, getpid(), 0));
	kid_fd = MUST(syscall(SYS_pidfd_open, kid, O_NONBLOCK));
	dead_fd = MUST(syscall(SYS_pidfd_open, dead, 0));
	flags = MUST(fcntl(kid_fd, F_GETFL));
	guest_ready_wait();
	if (SPOIL("own"))
		dup2(kid_fd, own);
	if (SPOIL("child"))
		dup2(own, kid_fd);
	if (SPOIL("dead"))
		dup2(kid_fd, dead_fd);
	if (SPOIL("flags"))
		fcntl(kid_fd, F_SETFL, 0);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", own);
	SAME("pid behind the first", guest_field(guest_slurp(path), "\nPid:", 10), getpid());
	SAME("flags", fcntl(kid_fd, F_GETFL), flags);
	SAME("close-on-exec", fcntl(kid_fd, F_GETFD), FD_CLOEXEC);
	p = (struct pollfd){ dead_fd, POLLIN, 0 };
	SAME("poll of the ended child", poll(&p, 1, 0), 1);
	p = (struct pollfd){ kid_fd, POLLIN, 0 };
	SAME("poll of the living child", poll(&p, 1, 0), 0);
	memset(&si, 0, sizeof(si));
	MUST(waitid(P_PIDFD, dead_fd, &si, WEXITED));
	SAME("ended child", si.si_pid, dead);
	SAME("its exit code", si.si_status, 3);
	MUST(syscall(SYS_pidfd_send_signal, kid_fd, SIGTERM, NULL, 0));
	SAME("poll of the child", poll(&p, 1, 3000), 1);
	MUST(waitid(P_PIDFD, kid_fd, &si, WEXITED));
	SAME("child", si.si_pid, kid);
	SAME("its exit code", si.si_status, 0);
	guest_pass();
}
