/* TCP connections that are half closed, in all ways. */
#include "net.h"

enum { PAIRS = 3 };

static int listener, one[PAIRS], two[PAIRS];

static void wait_state(const char *what, int fd, int state)
{
	for (int i = 0; i < 400 && net_state(fd) != state; i++)
		usleep(5000);
	SAME(what, net_state(fd), state);
}

int main(int argc, char **argv)
{
	char b[8];

	guest_init(argc, argv);
	net_up();
	listener = net_listen(AF_INET, 6001, 8);
	for (int i = 0; i < PAIRS; i++)
		net_pair(listener, AF_INET, one + i, two + i);
	/* 0: FIN_WAIT2 and CLOSE_WAIT, data both ways */
	net_send(one[0], 5000, 1);
	MUST(shutdown(one[0], SHUT_WR));
	net_send(two[0], 6000, 2);
	/* 1: the same, nothing in the queues */
	MUST(shutdown(two[1], SHUT_WR));
	/* 2: only reading is over */
	MUST(shutdown(one[2], SHUT_RD));
	wait_state("before, closed", one[0], TCP_FIN_WAIT2);
	wait_state("before, other end", two[0], TCP_CLOSE_WAIT);
	wait_state("before, closed the other way", two[1], TCP_FIN_WAIT2);
	guest_ready_wait();
	if (SPOIL("state"))
		shutdown(two[0], SHUT_WR);
	if (SPOIL("bytes"))
		recv(two[0], b, 1, 0);
	if (SPOIL("other"))
		close(two[1]), two[1] = dup(one[2]);
	SAME("closed", net_state(one[0]), TCP_FIN_WAIT2);
	SAME("other end", net_state(two[0]), TCP_CLOSE_WAIT);
	SAME("closed the other way", net_state(two[1]), TCP_FIN_WAIT2);
	SAME("other end the other way", net_state(one[1]), TCP_CLOSE_WAIT);
	SAME("not closed", net_state(one[2]), TCP_ESTABLISHED);
	net_recv("up", two[0], 5000, 1);
	CHECK(recv(two[0], b, 1, 0) == 0, "no end of what came up");
	net_recv("down", one[0], 6000, 2);
	net_send(two[0], 700, 3);
	net_recv("down again", one[0], 700, 3);
	close(two[0]);
	CHECK(recv(one[0], b, 1, 0) == 0, "no end of what came down");
	CHECK(recv(one[1], b, 1, 0) == 0, "no end the other way");
	net_send(one[1], 800, 4);
	net_recv("the other way", two[1], 800, 4);
	MUST(shutdown(one[1], SHUT_WR));
	CHECK(recv(two[1], b, 1, 0) == 0, "no end at the end");
	CHECK(recv(one[2], b, 1, MSG_DONTWAIT) == 0, "reading is not over");
	net_send(one[2], 900, 5);
	net_recv("not closed", two[2], 900, 5);
	guest_pass();
}
