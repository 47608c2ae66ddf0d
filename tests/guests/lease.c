/* File leases: a read and a write lease, and that a break tells the holder. */
#include "guest.h"

static volatile int broken;

static void on_break(UNUSED int sig)
{
	broken++;
}

int main(int argc, char **argv)
{
	int ro, rw;

	guest_init(argc, argv);
	signal(SIGUSR1, on_break);
	close(MUST(open(guest_path("ro"), O_WRONLY | O_CREAT, 0600)));
	ro = MUST(open(guest_path("ro"), O_RDONLY));
	rw = MUST(open(guest_path("rw"), O_RDWR | O_CREAT, 0600));
	if (fcntl(ro, F_SETLEASE, F_RDLCK))
		guest_skip("no leases on this file system");
	MUST(fcntl(ro, F_SETSIG, SIGUSR1));
	MUST(fcntl(rw, F_SETLEASE, F_WRLCK));
	guest_ready_wait();
	if (SPOIL("read"))
		fcntl(ro, F_SETLEASE, F_UNLCK);
	if (SPOIL("write"))
		fcntl(rw, F_SETLEASE, F_UNLCK);
	if (SPOIL("signal"))
		fcntl(ro, F_SETSIG, SIGWINCH);
	SAME("read lease", fcntl(ro, F_GETLEASE), F_RDLCK);
	SAME("write lease", fcntl(rw, F_GETLEASE), F_WRLCK);
	/* Opening for writing breaks the read lease. */
	CHECK(open(guest_path("ro"), O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK, "the lease does not hold");
	SAME("told", broken, 1);
	guest_pass();
}
