/* Many children of one parent, each with memory of its own. argv[3] is how many (100). */
#include "guest.h"

static unsigned mine;

static void child(void *arg)
{
	mine = (unsigned)(long)arg;
	guest_child_ready_wait();
	if (SPOIL("memory") && mine == 42)
		mine++;
	SAME("number of the child", mine, (long)arg);
	SAME("parent", getppid(), guest_root);
}

int main(int argc, char **argv)
{
	pid_t *kids;
	long n;

	guest_init(argc, argv);
	n = guest_arg(0, 100);
	kids = calloc(n, sizeof(*kids));
	for (long i = 0; i < n; i++)
		kids[i] = guest_child(child, (void *)i);
	guest_ready_wait();
	if (SPOIL("lost")) {
		kill(kids[n - 1], SIGKILL);
		waitpid(kids[n - 1], NULL, 0);
	}
	for (long i = 0; i < n; i++)
		guest_child_finish(kids[i]);
	guest_pass();
}
