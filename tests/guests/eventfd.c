/* eventfd: counters, semaphore mode, flags, one shared with a child. */
#include "guest.h"
#include <sys/eventfd.h>

static int shared;

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	MUST(eventfd_write(shared, 5));
}

int main(int argc, char **argv)
{
	int plain, sem, full;
	eventfd_t v;
	pid_t kid;

	guest_init(argc, argv);
	plain = MUST(eventfd(42, EFD_NONBLOCK));
	sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
	full = MUST(eventfd(0, EFD_NONBLOCK));
	MUST(eventfd_write(full, 0xfffffffffffffffeULL));
	shared = MUST(eventfd(0, EFD_NONBLOCK));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("count"))
		eventfd_write(plain, 1);
	if (SPOIL("semaphore"))
		dup2(eventfd(3, EFD_NONBLOCK), sem);
	if (SPOIL("full"))
		eventfd_read(full, &v);
	if (SPOIL("flags"))
		fcntl(plain, F_SETFL, 0);
	if (SPOIL("shared"))
		dup2(eventfd(0, EFD_NONBLOCK), shared);
	SAME("flags", fcntl(plain, F_GETFL), O_RDWR | O_NONBLOCK);
	SAME("close-on-exec of the plain one", fcntl(plain, F_GETFD), 0);
	MUST(eventfd_read(plain, &v));
	SAME("counter", v, 42);
	for (int i = 0; i < 3; i++) {
		MUST(eventfd_read(sem, &v));
		SAME("semaphore read", v, 1);
	}
	CHECK(eventfd_read(sem, &v) == -1 && errno == EAGAIN, "the semaphore holds more than before");
	CHECK(eventfd_write(full, 1) == -1 && errno == EAGAIN, "the full counter takes more");
	guest_child_finish(kid);
	CHECK(!eventfd_read(shared, &v) && v == 5, "the child's count did not arrive");
	guest_pass();
}
