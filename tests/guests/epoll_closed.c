/*
 * epoll targets whose number is gone: the descriptor was closed while a duplicate keeps the open file (and so the
 * registration) alive, and the old number was given to another file.
 */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(int argc, char **argv)
{
	struct epoll_event ev[8], one = { .events = EPOLLIN };
	int ep, a, b, copy_a, copy_b, n, seen = 0;

	guest_init(argc, argv);
	ep = MUST(epoll_create1(0));
	a = MUST(eventfd(0, 0));
	b = MUST(eventfd(0, 0));
	one.data.u64 = 1;
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, a, &one));
	one.data.u64 = 2;
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, b, &one));
	copy_a = MUST(fcntl(a, F_DUPFD, 60));
	copy_b = MUST(fcntl(b, F_DUPFD, 70));
	close(a);
	/* b's number now means something else. */
	MUST(dup2(MUST(open("/dev/null", O_RDONLY)), b));
	guest_ready_wait();
	if (SPOIL("closed"))
		dup2(eventfd(0, 0), copy_a);
	if (SPOIL("reused"))
		dup2(eventfd(0, 0), copy_b);
	MUST(eventfd_write(copy_a, 1));
	MUST(eventfd_write(copy_b, 1));
	n = epoll_wait(ep, ev, 8, 1000);
	for (int i = 0; i < n; i++)
		seen |= ev[i].data.u64;
	SAME("events of the closed numbers", seen, 3);
	guest_pass();
}
