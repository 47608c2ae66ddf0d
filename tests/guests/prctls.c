/* The prctl family that every engine should know: parent-death signal, dumpable, name, keepcaps, tsc, THP. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	int sig = 0;

	MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	MUST(prctl(PR_SET_DUMPABLE, 0));
	guest_child_ready_wait();
	if (SPOIL("pdeathsig"))
		prctl(PR_SET_PDEATHSIG, 0);
	if (SPOIL("dumpable"))
		prctl(PR_SET_DUMPABLE, 1);
	MUST(prctl(PR_GET_PDEATHSIG, &sig));
	SAME("parent-death signal", sig, SIGUSR1);
	SAME("dumpable", prctl(PR_GET_DUMPABLE), 0);
}

int main(int argc, char **argv)
{
	char name[16] = "";
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	/* 15 bytes, among them what /proc/PID/stat does not like. */
	MUST(prctl(PR_SET_NAME, "a) R 1 (\n\\\xff end"));
	MUST(prctl(PR_SET_KEEPCAPS, 1));
	guest_ready_wait();
	if (SPOIL("name"))
		prctl(PR_SET_NAME, "other");
	if (SPOIL("keepcaps"))
		prctl(PR_SET_KEEPCAPS, 0);
	MUST(prctl(PR_GET_NAME, name));
	CHECK(!strcmp(name, "a) R 1 (\n\\\xff end"), "name is %s", name);
	SAME("keepcaps", prctl(PR_GET_KEEPCAPS), 1);
	SAME("dumpable", prctl(PR_GET_DUMPABLE), 1);
	guest_child_finish(kid);
	guest_pass();
}
