/* A chain of tasks, each the only child of the one above. argv[3] is how many (20). */
#include "guest.h"

static void level(void *arg)
{
	long left = (long)arg;
	pid_t parent = getppid(), below = left > 1 ? guest_child(level, (void *)(left - 1)) : 0;

	guest_child_ready_wait();
	if (SPOIL("chain") && left == 2)
		kill(below, SIGKILL);
	SAME("parent", getppid(), parent);
	if (below)
		guest_child_finish(below);
}

int main(int argc, char **argv)
{
	pid_t below;

	guest_init(argc, argv);
	below = guest_child(level, (void *)guest_arg(0, 20));
	guest_ready_wait();
	guest_child_finish(below);
	guest_pass();
}
