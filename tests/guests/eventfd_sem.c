/* eventfd in semaphore mode: each read takes one. */
#include "guest.h"
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
	eventfd_t v;
	int sem;

	guest_init(argc, argv);
	sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
	guest_ready_wait();
	if (SPOIL("semaphore"))
		dup2(eventfd(3, EFD_NONBLOCK), sem);
	if (SPOIL("count"))
		eventfd_write(sem, 1);
	for (int i = 0; i < 3; i++) {
		CHECK(!eventfd_read(sem, &v), "the semaphore is empty after %d reads", i);
		SAME("semaphore read", v, 1);
	}
	CHECK(eventfd_read(sem, &v) == -1 && errno == EAGAIN, "the semaphore holds more than before");
	guest_pass();
}
