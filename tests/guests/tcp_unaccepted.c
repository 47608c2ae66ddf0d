/* A listening socket with a connection that nobody has accepted: with --skip-in-flight it comes back without it. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, c, s;
	union address a;
	socklen_t n;
	char b;

	guest_init(argc, argv);
	net_up();
	listener = net_listen(AF_INET, 6200, 4);
	n = net_addr(&a, AF_INET, 1, 6200);
	c = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(c, &a.sa, n));
	close(c);
	guest_ready_wait();
	if (SPOIL("deaf"))
		shutdown(listener, SHUT_RD);
	SAME("state", net_state(listener), TCP_LISTEN);
	/* the connection of before is there still, or is not; the next one comes in any case */
	c = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(connect(c, &a.sa, n));
	MUST(write(c, "z", 1));
	do
		s = MUST(accept(listener, NULL, NULL));
	while (read(s, &b, 1) == 0);
	SAME("what the next one says", b, 'z');
	guest_pass();
}
