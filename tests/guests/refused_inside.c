/* Something no version carries, deep in a tree: a grandchild that sets a file system up, and goes on with it afterwards. */
#include "guest.h"

static void grandchild(UNUSED void *arg)
{
	int fs = MUST(syscall(SYS_fsopen, "tmpfs", 1));

	guest_child_ready_wait();
	if (SPOIL("goes on"))
		close(fs);
	/* FSCONFIG_CMD_CREATE */
	SAME("made", syscall(SYS_fsconfig, fs, 6, NULL, NULL, 0), 0);
}

static void child(UNUSED void *arg)
{
	pid_t kid = guest_child(grandchild, NULL);

	guest_child_ready_wait();
	guest_child_finish(kid);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	guest_child_finish(kid);
	guest_pass();
}
