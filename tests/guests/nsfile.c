/* Handles of the namespaces the task lives in, one of them used to enter that namespace. */
#include "guest.h"

static ino_t inode(int fd)
{
	struct stat st;

	MUST(fstat(fd, &st));
	return st.st_ino;
}

static ino_t now(const char *name)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
	MUST(stat(path, &st));
	return st.st_ino;
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "net", "uts", "ipc", "mnt", "pid", "user", "cgroup" };
	int fds[7];
	unsigned i;

	guest_init(argc, argv);
	for (i = 0; i < 7; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		fds[i] = MUST(open(path, O_RDONLY | (i == 2 ? O_CLOEXEC : 0)));
	}
	guest_ready_wait();
	if (SPOIL("inode"))
		MUST(dup2(fds[1], fds[0]));
	if (SPOIL("handle"))
		MUST(dup2(MUST(open("/dev/null", O_RDONLY)), fds[1]));
	if (SPOIL("close-on-exec"))
		MUST(fcntl(fds[2], F_SETFD, 0));
	for (i = 0; i < 7; i++)
		if (i != 1)
			SAME(names[i], inode(fds[i]), now(names[i]));
	SAME("close-on-exec", fcntl(fds[2], F_GETFD), FD_CLOEXEC);
	CHECK(setns(fds[1], CLONE_NEWUTS) == 0, "the handle of uts is none: errno %d", errno);
	guest_pass();
}
