/* A controlling terminal inside of the tree: its session, its foreground group, and job-control signals. */
#include "guest.h"
#include <termios.h>

static int master;
static char name[64];
static volatile int interrupted;

static void on_int(UNUSED int sig)
{
	interrupted++;
}

static void member(UNUSED void *arg)
{
	signal(SIGINT, on_int);
	MUST(setpgid(0, 0));
	guest_child_ready_wait();
	for (int i = 0; i < 2000 && !interrupted; i++)
		usleep(1000);
	SAME("interrupts of the foreground group", interrupted, SPOIL("foreground") ? 0 : 1);
}

static void leader(UNUSED void *arg)
{
	int tty;
	pid_t kid;

	close(0);
	MUST(setsid());
	tty = MUST(open(name, O_RDWR));
	signal(SIGTTOU, SIG_IGN);
	kid = guest_child(member, NULL);
	MUST(tcsetpgrp(tty, kid));
	guest_child_ready_wait();
	if (SPOIL("lost"))
		ioctl(tty, TIOCNOTTY);
	CHECK(tcgetsid(tty) == getpid(), "the terminal's session is %d", tcgetsid(tty));
	SAME("foreground group", tcgetpgrp(tty), kid);
	/* Ctrl-C is typed: only the foreground group gets it. */
	SAME("written", write(master, "\003", 1), 1);
	usleep(5000);
	SAME("interrupts of the leader", interrupted, 0);
	guest_child_finish(kid);
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
