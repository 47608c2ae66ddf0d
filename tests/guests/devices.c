/* Character devices: null, zero, full, urandom; flags, and that they still do what they are for. */
#include "guest.h"
#include <sys/sysmacros.h>

int main(int argc, char **argv)
{
	static const struct {
		const char *path;
		int flags, minor;
	} rows[] = {
		{ "/dev/null", O_RDWR, 3 },
		{ "/dev/zero", O_RDONLY, 5 },
		{ "/dev/full", O_WRONLY | O_APPEND, 7 },
		{ "/dev/urandom", O_RDONLY | O_NONBLOCK, 9 },
		{ "/dev/random", O_RDONLY, 8 },
	};
	enum { N = sizeof(rows) / sizeof(*rows) };
	char buf[16];
	struct stat st;
	int fd[N];

	guest_init(argc, argv);
	for (int i = 0; i < N; i++)
		fd[i] = MUST(open(rows[i].path, rows[i].flags));
	guest_ready_wait();
	if (SPOIL("swapped"))
		dup2(fd[0], fd[1]);
	if (SPOIL("flags"))
		fcntl(fd[3], F_SETFL, 0);
	if (SPOIL("closed"))
		close(fd[4]);
	for (int i = 0; i < N; i++) {
		CHECK(!fstat(fd[i], &st), "%s is closed", rows[i].path);
		CHECK(S_ISCHR(st.st_mode) && major(st.st_rdev) == 1 && (int)minor(st.st_rdev) == rows[i].minor, "%s is %d:%d", rows[i].path,
		      major(st.st_rdev), minor(st.st_rdev));
		SAME(rows[i].path, fcntl(fd[i], F_GETFL) & ~0100000, rows[i].flags);
	}
	SAME("read of /dev/null", read(fd[0], buf, 16), 0);
	SAME("read of /dev/zero", read(fd[1], buf, 16), 16);
	SAME("byte of /dev/zero", buf[15], 0);
	CHECK(write(fd[2], "x", 1) == -1 && errno == ENOSPC, "/dev/full is not full");
	SAME("read of /dev/urandom", read(fd[3], buf, 16), 16);
	guest_pass();
}
