/* Two tasks with one working directory, root and umask (CLONE_FS). */
#include "guest.h"

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	if (SPOIL("unshared"))
		unshare(CLONE_FS);
	SAME("umask set by the parent", umask(0123), 0135);
	MUST(chdir("/proc"));
}

int main(int argc, char **argv)
{
	char cwd[64] = "";
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child_flags(child, NULL, CLONE_FS);
	guest_ready_wait();
	umask(0135);
	guest_child_finish(kid);
	MUST((long)getcwd(cwd, sizeof(cwd)));
	CHECK(!strcmp(cwd, "/proc"), "working directory is %s", cwd);
	SAME("umask set by the child", umask(0), 0123);
	guest_pass();
}
