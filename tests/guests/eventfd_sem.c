/* eventfd in semaphore mode: each read takes one. */
#include "guest.h"
#include <sys/eventfd.h>

static int told(int fd)
{
	char path[64], text[1024];
	int info, n;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = MUST(open(path, O_RDONLY | O_CLOEXEC));
	n = MUST(read(info, text, sizeof(text) - 1));
	text[n] = 0;
	close(info);
	return !!strstr(text, "eventfd-semaphore");
}

int main(int argc, char **argv)
{
	eventfd_t v;
	int sem;

	guest_init(argc, argv);
	sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
	/* before 6.5 nobody can see from outside what it is */
	if (!told(sem))
		guest_skip("the kernel does not tell what is a semaphore");
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
