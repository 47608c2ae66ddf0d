/*
 * Tasks below the root in cgroup namespaces of their own: a child in one, its child in the same, and another child in a second one.
 * Who shares a namespace still does, who does not does not, and each is seen as the root of its own.
 */
#include "guest.h"

static ino_t space(pid_t pid)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/ns/cgroup", pid);
	MUST(stat(path, &st));
	return st.st_ino;
}

static void shows_root(void)
{
	const char *v2 = strstr(guest_slurp("/proc/self/cgroup"), "0::");

	/* nothing of it may be mounted here, but then all show the same */
	CHECK(!v2 || !strncmp(v2 + 3, "/\n", 2), "the own group is shown as %.20s", v2 + 3);
}

static void innermost(void *arg UNUSED)
{
	guest_child_ready_wait();
	if (SPOIL("apart"))
		MUST(unshare(CLONE_NEWCGROUP));
	SAME("the parent's namespace", space(getppid()), space(getpid()));
	shows_root();
}

static void inner(void *arg)
{
	pid_t child;

	MUST(unshare(CLONE_NEWCGROUP));
	child = arg ? guest_child(innermost, NULL) : 0;
	guest_child_ready_wait();
	if (SPOIL("left") && !arg) {
		int fd = MUST(open("/proc/1/ns/cgroup", O_RDONLY));

		MUST(setns(fd, 0));
	}
	CHECK(space(getppid()) != space(getpid()), "it is in the namespace of the root");
	shows_root();
	if (child)
		guest_child_finish(child);
}

int main(int argc, char **argv)
{
	pid_t one, two;

	guest_init(argc, argv);
	one = guest_child(inner, "with a child");
	two = guest_child(inner, NULL);
	guest_ready_wait();
	CHECK(space(one) != space(two), "two namespaces are one");
	guest_child_finish(one);
	guest_child_finish(two);
	guest_pass();
}
