/* TCP over IPv6, and over IPv4 by sockets of IPv6. */
#include "net.h"

int main(int argc, char **argv)
{
	int listener, dual, client, server, mapped, four;
	union address a;
	socklen_t n;

	guest_init(argc, argv);
	net_up();
	listener = net_listen(AF_INET6, 6001, 8);
	net_pair(listener, AF_INET6, &client, &server);
	net_set(client, IPPROTO_IPV6, IPV6_TCLASS, 0x10);
	net_send(client, 70000, 1);
	net_send(server, 30000, 2);
	dual = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	memset(&a, 0, sizeof(a));
	a.v6.sin6_family = AF_INET6;
	a.v6.sin6_port = htons(6002);
	MUST(bind(dual, &a.sa, sizeof(a.v6)));
	MUST(listen(dual, 4));
	four = MUST(socket(AF_INET, SOCK_STREAM, 0));
	n = net_addr(&a, AF_INET, 1, 6002);
	MUST(connect(four, &a.sa, n));
	mapped = MUST(accept(dual, NULL, NULL));
	net_send(four, 20000, 3);
	net_send(mapped, 10000, 4);
	guest_ready_wait();
	if (SPOIL("class"))
		net_set(client, IPPROTO_IPV6, IPV6_TCLASS, 0);
	if (SPOIL("mapped"))
		recv(mapped, &a, 1, 0);
	SAME("traffic class", net_int(client, IPPROTO_IPV6, IPV6_TCLASS), 0x10);
	net_recv("up", server, 70000, 1);
	net_recv("down", client, 30000, 2);
	net_recv("up, mapped", mapped, 20000, 3);
	net_recv("down, mapped", four, 10000, 4);
	n = sizeof(a);
	MUST(getpeername(mapped, &a.sa, &n));
	SAME("family", a.sa.sa_family, AF_INET6);
	CHECK(IN6_IS_ADDR_V4MAPPED(&a.v6.sin6_addr), "the peer is not mapped");
	net_send(client, 500, 5);
	net_recv("up again", server, 500, 5);
	net_send(mapped, 600, 6);
	net_recv("down again, mapped", four, 600, 6);
	close(mapped);
	CHECK(recv(four, &a, 4, 0) == 0, "no end");
	guest_pass();
}
