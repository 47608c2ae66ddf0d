/* Record locks of open files (F_OFD_SETLK): kinds and ranges. */
#include "guest.h"

static int set(int fd, int type, off_t from, off_t len)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = len };

	return fcntl(fd, F_OFD_SETLK, &fl);
}

int main(int argc, char **argv)
{
	int fd, other;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0600));
	other = MUST(open(guest_path("file"), O_RDWR));
	MUST(set(fd, F_WRLCK, 0, 10));
	MUST(set(fd, F_RDLCK, 20, 10));
	guest_ready_wait();
	if (SPOIL("write"))
		set(fd, F_UNLCK, 0, 10);
	if (SPOIL("read"))
		set(fd, F_UNLCK, 20, 10);
	if (SPOIL("kind"))
		set(fd, F_WRLCK, 20, 10);
	CHECK(set(other, F_RDLCK, 5, 1) == -1 && errno == EAGAIN, "the write lock is gone");
	CHECK(set(other, F_WRLCK, 20, 1) == -1 && errno == EAGAIN, "the read lock is gone");
	CHECK(!set(other, F_RDLCK, 20, 1), "the read lock became a write lock");
	CHECK(!set(other, F_WRLCK, 10, 10), "the gap is locked");
	/* They belong to the open file: closing another descriptor of the file does not drop them. */
	close(MUST(open(guest_path("file"), O_RDWR)));
	CHECK(set(other, F_RDLCK, 5, 1) == -1 && errno == EAGAIN, "it became a lock of the task");
	guest_pass();
}
