/* /proc files of the tree: own, a child's, a thread's, a directory, one half read, one global. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	MUST(prctl(PR_SET_NAME, "the-child"));
	guest_child_ready_wait();
}

int main(int argc, char **argv)
{
	int own, theirs, task, dir, half, uptime;
	char path[64], a[64] = "", b[64] = "";
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	own = MUST(open("/proc/self/status", O_RDONLY));
	snprintf(path, sizeof(path), "/proc/%d/comm", kid);
	theirs = MUST(open(path, O_RDONLY));
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", getpid(), getpid());
	task = MUST(open(path, O_RDONLY));
	snprintf(path, sizeof(path), "/proc/%d/fd", kid);
	dir = MUST(open(path, O_RDONLY | O_DIRECTORY));
	half = MUST(open("/proc/self/cmdline", O_RDONLY));
	SAME("read", read(half, a, 5), 5);
	uptime = MUST(open("/proc/uptime", O_RDONLY));
	guest_ready_wait();
	if (SPOIL("own"))
		dup2(theirs, own);
	if (SPOIL("theirs"))
		dup2(open("/proc/self/comm", O_RDONLY), theirs);
	if (SPOIL("offset"))
		lseek(half, 0, SEEK_SET);
	if (SPOIL("dir"))
		dup2(open("/proc/self/fd", O_RDONLY), dir);
	SAME("read of own status", read(own, b, 6), 6);
	CHECK(!memcmp(b, "Name:\t", 6), "own status begins with %s", b);
	memset(b, 0, sizeof(b));
	MUST(read(theirs, b, 60));
	CHECK(!strcmp(b, "the-child\n"), "the child's comm is %s", b);
	SAME("read of the task's stat", read(task, b, 60) > 10, 1);
	SAME("pid in the task's stat", atoi(b), getpid());
	SAME("position in cmdline", lseek(half, 0, SEEK_CUR), 5);
	SAME("read of uptime", read(uptime, b, 60) > 3, 1);
	/* Relative to the child's fd directory, "." is the child's: its ino differs from our own. */
	{
		struct stat x, y;

		MUST(fstat(dir, &x));
		snprintf(path, sizeof(path), "/proc/%d/fd", kid);
		MUST(stat(path, &y));
		SAME("inode of the child's fd directory", x.st_ino, y.st_ino);
	}
	guest_child_finish(kid);
	guest_pass();
}
