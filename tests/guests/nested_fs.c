/* Two tasks with one working directory, root and umask (CLONE_FS), in a mount namespace that the root of the tree is not in. */
#include "guest.h"
#include <sys/mount.h>

static void inner(void *arg UNUSED)
{
	guest_child_ready_wait();
	if (SPOIL("unshared"))
		MUST(unshare(CLONE_FS));
	CHECK(access("only-there", F_OK) == 0, "its working directory is another");
	SAME("umask set by the parent", umask(0123), 0135);
	MUST(chdir("/proc"));
}

static void outer(void *arg UNUSED)
{
	char cwd[64] = "";
	pid_t kid;

	MUST(unshare(CLONE_NEWNS));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount("nested", guest_path("t"), "tmpfs", 0, "size=64k"));
	MUST(chdir(guest_path("t")));
	close(MUST(open("only-there", O_CREAT | O_WRONLY, 0600)));
	kid = guest_child_flags(inner, NULL, CLONE_FS);
	guest_child_ready_wait();
	umask(0135);
	guest_child_finish(kid);
	MUST((long)getcwd(cwd, sizeof(cwd)));
	CHECK(!strcmp(cwd, "/proc"), "working directory is %s", cwd);
	SAME("umask set by the child", umask(0), 0123);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	MUST(mkdir(guest_path("t"), 0700));
	kid = guest_child(outer, NULL);
	guest_ready_wait();
	CHECK(access(guest_path("t/only-there"), F_OK) < 0, "a mount of the other namespace is seen");
	guest_child_finish(kid);
	guest_pass();
}
