/* eventfd with counters beyond 32 bits, up to the largest. */
#include "guest.h"
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
	int full, big;
	eventfd_t v;

	guest_init(argc, argv);
	full = MUST(eventfd(0, EFD_NONBLOCK));
	MUST(eventfd_write(full, 0xfffffffffffffffeULL));
	big = MUST(eventfd(0, EFD_NONBLOCK));
	MUST(eventfd_write(big, 0x123456789abcULL));
	guest_ready_wait();
	if (SPOIL("full"))
		eventfd_read(full, &v);
	if (SPOIL("big"))
		eventfd_write(big, 1);
	CHECK(!eventfd_read(big, &v), "the big counter is empty");
	SAME("big counter", v, 0x123456789abcULL);
	CHECK(eventfd_write(full, 1) == -1 && errno == EAGAIN, "the full counter takes more");
	CHECK(!eventfd_read(full, &v) && v == 0xfffffffffffffffeULL, "the full counter is 0x%lx", v);
	guest_pass();
}
