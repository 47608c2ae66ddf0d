/* Per-number and per-open-file flags: CLOEXEC differs between duplicates; O_NONBLOCK, O_DIRECT, O_APPEND do not. */
#include "guest.h"

int main(int argc, char **argv)
{
	int fd, keep, drop;
	struct stat st;

	guest_init(argc, argv);
	fd = MUST(open("/dev/null", O_RDWR | O_NONBLOCK));
	keep = MUST(fcntl(fd, F_DUPFD, 30));
	drop = MUST(fcntl(fd, F_DUPFD_CLOEXEC, 31));
	MUST(fcntl(fd, F_SETFL, O_APPEND));
	/* Holes in the table: 0 is closed. */
	close(0);
	guest_ready_wait();
	if (SPOIL("cloexec"))
		fcntl(drop, F_SETFD, 0);
	if (SPOIL("no-cloexec"))
		fcntl(keep, F_SETFD, FD_CLOEXEC);
	if (SPOIL("hole"))
		dup2(fd, 0);
	if (SPOIL("extra"))
		dup2(fd, 77);
	SAME("close-on-exec of 31", fcntl(drop, F_GETFD), FD_CLOEXEC);
	SAME("close-on-exec of 30", fcntl(keep, F_GETFD), 0);
	SAME("close-on-exec of the first", fcntl(fd, F_GETFD), 0);
	for (int i = 0; i < 3; i++)
		SAME("flags", fcntl(i == 0 ? fd : i == 1 ? keep : drop, F_GETFL) & ~0100000, O_RDWR | O_APPEND);
	for (int i = 0; i < 1000; i++)
		SAME("is open", !fstat(i, &st), i == 1 || i == 2 || i == fd || i == keep || i == drop);
	guest_pass();
}
