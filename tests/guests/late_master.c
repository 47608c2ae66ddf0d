/*
 * Mounts that get their mounts from a mount namespace made later than their own: the root's and its child's are slaves of the
 * grandchild's, and the child's has peers of its own besides.
 */
#include "mounts.h"

static void sees(const char *who, const char *name, int yes)
{
	char path[64];

	snprintf(path, sizeof(path), "s/%s/here", name);
	CHECK((access(guest_path(path), F_OK) == 0) == yes, "%s %s what was mounted in %s", who, yes ? "does not see" : "sees", name);
}

static void mounted(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "s/%s", name);
	MUST(mount("late", guest_path(path), "tmpfs", 0, NULL));
	strcat(path, "/here");
	put(guest_path(path), "x");
}

static void last(UNUSED void *arg)
{
	MUST(unshare(CLONE_NEWNS));
	guest_child_ready_wait();
	if (SPOIL("master"))
		change(guest_path("s"), MS_PRIVATE);
	mounted("a");
}

static void middle(UNUSED void *arg)
{
	pid_t child;

	MUST(unshare(CLONE_NEWNS));
	child = guest_child(last, NULL);
	change(guest_path("s"), MS_SLAVE);
	change(guest_path("s"), MS_SHARED);
	MUST(mkdir(guest_path("p"), 0700));
	MUST(mount(guest_path("s"), guest_path("p"), NULL, MS_BIND, NULL));
	guest_child_ready_wait();
	guest_child_finish(child);
	sees("the child", "a", 1);
	if (SPOIL("peers"))
		change(guest_path("p"), MS_PRIVATE);
	mounted("b");
	CHECK(access(guest_path("p/b/here"), F_OK) == 0, "the child's peers are none");
}

int main(int argc, char **argv)
{
	pid_t child;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNS);
	change("/", MS_REC | MS_PRIVATE);
	tmpfs(guest_path("s"), 0, "size=64k");
	MUST(mkdir(guest_path("s/a"), 0700));
	MUST(mkdir(guest_path("s/b"), 0700));
	change(guest_path("s"), MS_SHARED);
	child = guest_child(middle, NULL);
	change(guest_path("s"), MS_SLAVE);

	guest_ready_wait();

	if (SPOIL("slave"))
		change(guest_path("s"), MS_PRIVATE);
	guest_child_finish(child);
	sees("the root", "a", 1);
	if (SPOIL("middle"))
		mounted("b");
	sees("the root", "b", 0);
	guest_pass();
}
