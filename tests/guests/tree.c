/* A tree with sessions and process groups: children in the parent's group, in their own, in their own session. */
#include "guest.h"

struct want {
	pid_t parent, session, group;
	int own_group, own_session;
	/* A child's child: index of the row below, -1 for none. */
	int child;
};

static struct want rows[] = {
	{ .child = -1 },
	{ .own_group = 1, .child = 4 },
	{ .own_session = 1, .child = 3 },
	{ .own_group = 1, .child = -1 },
	{ .child = -1 },
};

static void body(void *arg)
{
	struct want *w = arg;
	pid_t pid = getpid(), below = 0;

	w->parent = getppid();
	if (w->own_group)
		MUST(setpgid(0, 0));
	if (w->own_session)
		MUST(setsid());
	w->group = getpgrp();
	w->session = getsid(0);
	if (w->child >= 0)
		below = guest_child(body, &rows[w->child]);
	guest_child_ready_wait();
	if (SPOIL("group") && w == &rows[0])
		MUST(setpgid(0, 0));
	if (SPOIL("session") && w == &rows[0])
		MUST(setsid());
	SAME("pid", getpid(), pid);
	SAME("parent", getppid(), w->parent);
	SAME("session", getsid(0), w->session);
	SAME("group", getpgrp(), w->group);
	if (below)
		guest_child_finish(below);
}

int main(int argc, char **argv)
{
	pid_t kids[3], pid;

	guest_init(argc, argv);
	pid = getpid();
	for (int i = 0; i < 3; i++)
		kids[i] = guest_child(body, &rows[i]);
	guest_ready_wait();
	if (SPOIL("lost-child")) {
		kill(kids[1], SIGKILL);
		waitpid(kids[1], NULL, 0);
	}
	SAME("session", getsid(0), pid);
	SAME("group", getpgrp(), pid);
	for (int i = 0; i < 3; i++)
		guest_child_finish(kids[i]);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there are more children than before");
	guest_pass();
}
