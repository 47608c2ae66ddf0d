/* A parent asleep in vfork() while its child, which borrows its memory, is frozen; it wakes when the child leaves. */
#include "guest.h"

static volatile int said;

int main(int argc, char **argv)
{
	pid_t kid;
	int status;

	guest_init(argc, argv);
	/*
	 * The root waits in vfork, so the child speaks for it: same memory, but a pid of its own. `ready` holds the
	 * root's pid, and SIGTERM to the root stays pending until the child is done.
	 */
	kid = vfork();
	if (!kid) {
		char text[32];
		sigset_t pending;

		snprintf(text, sizeof(text), "%d\n", guest_root);
		guest_tell("ready", text);
		/* Wait for the root's SIGTERM to be pending: seen in its status file. */
		for (;;) {
			unsigned long long bits;

			snprintf(text, sizeof(text), "/proc/%d/status", guest_root);
			bits = guest_field(guest_slurp(text), "ShdPnd:", 16);
			sigemptyset(&pending);
			if (bits & 1ull << (SIGTERM - 1))
				break;
			usleep(2000);
		}
		said = SPOIL("memory") ? 41 : 42;
		_exit(6);
	}
	MUST(kid);
	SAME("what the child wrote", said, 42);
	if (SPOIL("reaped"))
		waitpid(kid, NULL, 0);
	SAME("child", waitpid(kid, &status, 0), kid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 6, "child ended with 0x%x", status);
	guest_wait();
	guest_pass();
}
