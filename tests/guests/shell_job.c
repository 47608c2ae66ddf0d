/*
 * A job of a shell: its session and controlling terminal are not its own. Restored with --shell-job it belongs to the
 * session and terminal of whoever restores.
 */
#define GUEST_KEEPS_SESSION
#include "guest.h"
#include <termios.h>

int main(int argc, char **argv)
{
	guest_init(argc, argv);
	CHECK(isatty(0) && getsid(0) != getpid(), "not started as a job");
	guest_ready_wait();
	if (SPOIL("closed"))
		dup2(open("/dev/null", O_RDWR), 1);
	if (SPOIL("session")) {
		/* A group leader may not make a session: join the shell's group first. */
		setpgid(0, getppid());
		setsid();
	}
	CHECK(isatty(0), "stdin is no terminal any more");
	CHECK(isatty(1), "stdout is no terminal any more");
	SAME("session of the terminal", tcgetsid(0), getsid(0));
	SAME("stdin and stdout are one open file", syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 1), 0);
	guest_pass();
}
