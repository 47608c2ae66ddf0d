/* Orphans: tasks whose parent ended, adopted by the root (a subreaper); group whose leader ended. */
#include "guest.h"

static int report[2];

/* Sleeps until told, then checks that its relatives are as they were. */
static void orphan(pid_t group)
{
	pid_t ids[3] = { getpid(), getsid(0), group };

	/* The parent must be gone first. */
	while (getppid() != guest_root)
		usleep(500);
	if (write(report[1], ids, sizeof(ids)) != sizeof(ids))
		_exit(3);
	close(report[1]);
	close(report[0]);
	guest_wait();
	if (SPOIL("group"))
		setpgid(0, 0);
	SAME("parent", getppid(), guest_root);
	SAME("session", getsid(0), ids[1]);
	SAME("group", getpgrp(), ids[2]);
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t ids[2][3], mid;

	guest_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (int i = 0; i < 2; i++) {
		MUST(pipe(report));
		mid = MUST(fork());
		if (!mid) {
			/* The second one's group leader is the task that ends. */
			if (i)
				setpgid(0, 0);
			if (!fork())
				orphan(getpgrp());
			_exit(0);
		}
		close(report[1]);
		SAME("read", read(report[0], ids[i], sizeof(ids[i])), sizeof(ids[i]));
		close(report[0]);
		MUST(waitpid(mid, NULL, 0));
	}
	guest_ready_wait();
	if (SPOIL("lost")) {
		kill(ids[0][0], SIGKILL);
		waitpid(ids[0][0], NULL, 0);
	}
	for (int i = 0; i < 2; i++)
		guest_child_finish(ids[i][0]);
	guest_pass();
}
