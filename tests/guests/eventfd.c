/* eventfd: counters, flags, one shared with a child. */
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
	int plain;
	eventfd_t v;
	pid_t kid;

	guest_init(argc, argv);
	plain = MUST(eventfd(42, EFD_NONBLOCK));
	shared = MUST(eventfd(0, EFD_NONBLOCK));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("count"))
		eventfd_write(plain, 1);
	if (SPOIL("flags"))
		fcntl(plain, F_SETFL, 0);
	if (SPOIL("shared"))
		dup2(eventfd(0, EFD_NONBLOCK), shared);
	SAME("flags", fcntl(plain, F_GETFL), O_RDWR | O_NONBLOCK);
	SAME("close-on-exec of the plain one", fcntl(plain, F_GETFD), 0);
	MUST(eventfd_read(plain, &v));
	SAME("counter", v, 42);
	guest_child_finish(kid);
	CHECK(!eventfd_read(shared, &v) && v == 5, "the child's count did not arrive");
	guest_pass();
}
