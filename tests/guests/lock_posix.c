/* POSIX record locks: ranges, kinds, owners; seen from another task of the tree. */
#include "guest.h"

static int fd;

static int owner(int type, off_t from, off_t len)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = len };

	MUST(fcntl(fd, F_GETLK, &fl));
	return fl.l_type == F_UNLCK ? 0 : fl.l_pid;
}

static void lock(int type, off_t from, off_t len)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = len };

	MUST(fcntl(fd, F_SETLK, &fl));
}

static void child(UNUSED void *arg)
{
	if (!SPOIL("child"))
		lock(F_WRLCK, 500, 0);
	guest_child_ready_wait();
	SAME("owner of 0-10", owner(F_RDLCK, 0, 10), guest_root);
	SAME("owner of 10-20", owner(F_WRLCK, 10, 10), 0);
	SAME("owner of 20-40 against readers", owner(F_RDLCK, 20, 20), 0);
	SAME("owner of 20-40 against writers", owner(F_WRLCK, 20, 20), guest_root);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0600));
	kid = guest_child(child, NULL);
	lock(F_WRLCK, 0, 10);
	lock(F_RDLCK, 20, 20);
	guest_ready_wait();
	if (SPOIL("write"))
		lock(F_UNLCK, 0, 10);
	if (SPOIL("read"))
		lock(F_UNLCK, 20, 20);
	if (SPOIL("kind"))
		lock(F_WRLCK, 20, 20);
	SAME("owner of the end", owner(F_RDLCK, 1 << 20, 1), kid);
	guest_child_finish(kid);
	guest_pass();
}
