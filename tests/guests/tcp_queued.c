/* Listening sockets of both families with connections that nobody has accepted: with data, with much of it, with an end. They come
 * back in their order, with what they hold, and go on. */
#include "net.h"

#define WAITING 4
#define MUCH 40000

static void build(int family, int port, int *listener, int *clients)
{
	union address a;
	socklen_t n = net_addr(&a, family, 1, port);

	*listener = net_listen(family, port, 8);
	for (int i = 0; i < WAITING; i++) {
		clients[i] = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
		MUST(connect(clients[i], &a.sa, n));
		if (i)
			net_send(clients[i], i == 1 ? MUCH : 8, i);
	}
	MUST(shutdown(clients[2], SHUT_WR));
	for (int i = 0; i < 200; i++) {
		int left;

		MUST(ioctl(clients[1], SIOCOUTQ, &left));
		if (!left)
			break;
		usleep(1000);
	}
}

static void waits(int listener, int n)
{
	struct tcp_info i = { 0 };
	socklen_t len = sizeof(i);

	MUST(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &i, &len));
	SAME("state", i.tcpi_state, TCP_LISTEN);
	SAME("connections that wait", i.tcpi_unacked, n);
}

static void check(int family, int listener, int *clients)
{
	struct pollfd p = { .fd = listener, .events = POLLIN };

	waits(listener, WAITING);
	if (SPOIL("order"))
		close(MUST(accept(listener, NULL, NULL)));
	for (int i = 0; i < WAITING; i++) {
		union address a = { 0 };
		socklen_t n = sizeof(a);
		char b[8];
		int s;

		CHECK(poll(&p, 1, 2000) == 1, "connection %d does not come", i);
		s = MUST(accept(listener, &a.sa, &n));
		SAME("port of who comes", ntohs(family == AF_INET ? a.v4.sin_port : a.v6.sin6_port), net_port(clients[i]));
		SAME("mark", net_int(s, SOL_SOCKET, SO_MARK), 0);
		if (SPOIL("data") && i == 1)
			read(s, b, 1);
		if (i)
			net_recv("what waited", s, i == 1 ? MUCH : 8, i);
		net_send(s, 50000, 100 + i);
		net_recv("the answer", clients[i], 50000, 100 + i);
		if (i == 2) {
			struct pollfd e = { .fd = s, .events = POLLIN };

			CHECK(poll(&e, 1, 2000) == 1 && read(s, b, 1) == 0, "the end is lost");
		} else {
			net_send(clients[i], 70000, 200 + i);
			net_recv("what comes later", s, 70000, 200 + i);
		}
		close(s);
		CHECK(read(clients[i], b, 1) == 0, "connection %d does not end", i);
	}
	waits(listener, 0);
}

int main(int argc, char **argv)
{
	int four, six, of_four[WAITING], of_six[WAITING];

	guest_init(argc, argv);
	net_up();
	build(AF_INET, 6210, &four, of_four);
	build(AF_INET6, 6211, &six, of_six);
	guest_ready_wait();
	check(AF_INET, four, of_four);
	check(AF_INET6, six, of_six);
	guest_pass();
}
