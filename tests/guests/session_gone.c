/* A session whose leader ended: its members go on, in two groups, under the id of a task that is no more. */
#include "guest.h"

static int report[2];

static void member(int own_group)
{
	pid_t ids[3];

	if (own_group)
		setpgid(0, 0);
	while (getppid() != guest_root)
		usleep(500);
	ids[0] = getpid();
	ids[1] = getsid(0);
	ids[2] = getpgrp();
	if (write(report[1], ids, sizeof(ids)) != sizeof(ids))
		_exit(3);
	close(report[0]);
	close(report[1]);
	guest_wait();
	if (SPOIL("session"))
		setsid();
	SAME("session", getsid(0), ids[1]);
	SAME("group", getpgrp(), ids[2]);
	CHECK(kill(ids[1], 0) == -1 && errno == ESRCH, "the leader of the session lives again");
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t ids[2][3], leader;

	guest_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe(report));
	leader = MUST(fork());
	if (!leader) {
		setsid();
		for (int i = 0; i < 2; i++)
			if (!fork())
				member(i);
		_exit(0);
	}
	close(report[1]);
	for (int i = 0; i < 2; i++)
		SAME("read", read(report[0], ids[i], sizeof(ids[i])), sizeof(ids[i]));
	close(report[0]);
	SAME("leader", waitpid(leader, NULL, 0), leader);
	guest_ready_wait();
	for (int i = 0; i < 2; i++) {
		SAME("session", ids[i][1], leader);
		guest_child_finish(ids[i][0]);
	}
	guest_pass();
}
