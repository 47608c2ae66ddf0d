/* /dev/tty as an open file: the controlling terminal of the task that opened it, in a session of the tree. */
#include "guest.h"
#include <termios.h>

static int master;
static char name[64];

static void leader(UNUSED void *arg)
{
	char c = 0;
	int dev;

	MUST(setsid());
	close(MUST(open(name, O_RDWR)));
	dev = MUST(open("/dev/tty", O_RDWR));
	guest_child_ready_wait();
	if (SPOIL("closed"))
		dup2(open("/dev/null", O_RDWR), dev);
	SAME("session of the terminal", tcgetsid(dev), getpid());
	SAME("foreground group", tcgetpgrp(dev), getpgrp());
	SAME("written", write(dev, "x", 1), 1);
	SAME("read by the master", read(master, &c, 1), 1);
	SAME("byte", c, 'x');
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(unlockpt(master));
	CHECK(!ptsname_r(master, name, sizeof(name)), "no name");
	kid = guest_child(leader, NULL);
	guest_ready_wait();
	guest_child_finish(kid);
	guest_pass();
}
