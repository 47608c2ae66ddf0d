/* umask and working directory of two tasks. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	char cwd[64] = "";

	umask(0027);
	MUST(chdir("/proc"));
	guest_child_ready_wait();
	MUST((long)getcwd(cwd, sizeof(cwd)));
	CHECK(!strcmp(cwd, "/proc"), "cwd is %s", cwd);
	SAME("umask of the child", umask(0), SPOIL("child") ? 0 : 0027);
}

int main(int argc, char **argv)
{
	char was[PATH_MAX], now[PATH_MAX];
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	umask(0777);
	MUST((long)getcwd(was, sizeof(was)));
	guest_ready_wait();
	if (SPOIL("umask"))
		umask(022);
	if (SPOIL("cwd"))
		MUST(chdir("/"));
	SAME("umask", umask(022), 0777);
	MUST((long)getcwd(now, sizeof(now)));
	CHECK(!strcmp(was, now), "cwd is %s", now);
	guest_child_finish(kid);
	guest_pass();
}
