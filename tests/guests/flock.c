/* flock(2) locks: exclusive and shared, held by an open file that parent and child share. */
#include "guest.h"
#include <sys/file.h>

static int fd;

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	/* The lock belongs to the open file: the child may release it. */
	if (!SPOIL("held"))
		MUST(flock(fd, LOCK_UN));
}

int main(int argc, char **argv)
{
	int other, shared, again;
	pid_t kid;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("ex"), O_RDWR | O_CREAT, 0600));
	other = MUST(open(guest_path("ex"), O_RDWR));
	MUST(flock(fd, LOCK_EX));
	shared = MUST(open(guest_path("sh"), O_RDWR | O_CREAT, 0600));
	again = MUST(open(guest_path("sh"), O_RDONLY));
	MUST(flock(shared, LOCK_SH));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("exclusive"))
		flock(fd, LOCK_UN);
	if (SPOIL("shared"))
		flock(shared, LOCK_UN);
	if (SPOIL("stronger"))
		flock(shared, LOCK_EX);
	CHECK(flock(other, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the exclusive lock is gone");
	CHECK(flock(again, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the shared lock is gone");
	CHECK(!flock(again, LOCK_SH | LOCK_NB), "the shared lock became exclusive");
	guest_child_finish(kid);
	CHECK(!flock(other, LOCK_EX | LOCK_NB), "the child could not release the lock");
	guest_pass();
}
