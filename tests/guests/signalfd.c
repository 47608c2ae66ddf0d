/* signalfd: mask, flags, and a signal that waits in it. */
#include "guest.h"
#include <sys/signalfd.h>

int main(int argc, char **argv)
{
	struct signalfd_siginfo si;
	sigset_t set;
	int fd, two;

	guest_init(argc, argv);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 9);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
	sigdelset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	two = MUST(signalfd(-1, &set, SFD_NONBLOCK));
	MUST(sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 31 }));
	guest_ready_wait();
	if (SPOIL("mask"))
		signalfd(fd, &set, 0);
	if (SPOIL("pending"))
		MUST(read(fd, &si, sizeof(si)));
	if (SPOIL("flags"))
		fcntl(fd, F_SETFL, 0);
	SAME("flags", fcntl(fd, F_GETFL), O_RDWR | O_NONBLOCK);
	SAME("close-on-exec", fcntl(fd, F_GETFD), FD_CLOEXEC);
	CHECK(read(two, &si, sizeof(si)) == -1 && errno == EAGAIN, "the second one sees signal %d", si.ssi_signo);
	SAME("read", read(fd, &si, sizeof(si)), sizeof(si));
	SAME("signal", si.ssi_signo, SIGUSR1);
	SAME("value", si.ssi_int, 31);
	MUST(sigqueue(getpid(), SIGUSR2, (union sigval){ .sival_int = 32 }));
	CHECK(read(fd, &si, sizeof(si)) == -1 && errno == EAGAIN, "the first one sees signal %d", si.ssi_signo);
	SAME("read of the second one", read(two, &si, sizeof(si)), sizeof(si));
	SAME("value of the second one", si.ssi_int, 32);
	guest_pass();
}
