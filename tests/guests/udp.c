/* UDP and UDP-Lite sockets: bound, connected, shut down, with options; both families. */
#include "net.h"
#include <netinet/udp.h>

static void talks(const char *what, int from, int to)
{
	char b[32] = "";

	CHECK(send(from, what, strlen(what), 0) == (ssize_t)strlen(what), "%s: send: %s", what, strerror(errno));
	CHECK(recv(to, b, sizeof(b), 0) == (ssize_t)strlen(what) && !strcmp(b, what), "%s: got %s", what, b);
}

int main(int argc, char **argv)
{
	int server, client, six, six_client, shared[2], done, lite;
	struct pollfd p = { .events = POLLRDHUP };
	union address a;
	socklen_t n;

	guest_init(argc, argv);
	net_up();
	server = net_bound(AF_INET, SOCK_DGRAM, 1, 5001);
	net_set(server, IPPROTO_IP, IP_PKTINFO, 1);
	net_set(server, SOL_SOCKET, SO_TIMESTAMPNS, 1);
	net_set(server, SOL_SOCKET, SO_RCVBUF, 50000);
	net_set(server, SOL_SOCKET, SO_BROADCAST, 1);
	client = net_bound(AF_INET, SOCK_DGRAM, 7, 5007);
	n = net_addr(&a, AF_INET, 1, 5001);
	MUST(connect(client, &a.sa, n));
	net_set(client, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
	net_set(client, IPPROTO_IP, IP_RECVERR, 1);
	six = net_bound(AF_INET6, SOCK_DGRAM, 1, 5002);
	net_set(six, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	net_set(six, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
	six_client = net_bound(AF_INET6, SOCK_DGRAM, 1, 5003);
	n = net_addr(&a, AF_INET6, 1, 5002);
	MUST(connect(six_client, &a.sa, n));
	for (int i = 0; i < 2; i++) {
		shared[i] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
		net_set(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
		n = net_addr(&a, AF_INET, 1, 5010);
		MUST(bind(shared[i], &a.sa, n));
	}
	done = net_bound(AF_INET, SOCK_DGRAM, 1, 5011);
	n = net_addr(&a, AF_INET, 1, 5001);
	MUST(connect(done, &a.sa, n));
	MUST(shutdown(done, SHUT_RD));
	lite = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
	if (lite >= 0) {
		n = net_addr(&a, AF_INET, 1, 5012);
		MUST(bind(lite, &a.sa, n));
		net_set(lite, IPPROTO_UDPLITE, 10, 8);
	}
	guest_ready_wait();
	if (SPOIL("peer")) {
		n = net_addr(&a, AF_INET, 1, 5999);
		connect(client, &a.sa, n);
	}
	if (SPOIL("pktinfo"))
		net_set(server, IPPROTO_IP, IP_PKTINFO, 0);
	if (SPOIL("port"))
		dup2(net_bound(AF_INET6, SOCK_DGRAM, 1, 5004), six_client);
	n = sizeof(a);
	MUST(getpeername(client, &a.sa, &n));
	SAME("port of the peer", ntohs(a.v4.sin_port), 5001);
	SAME("own port", net_port(client), 5007);
	talks("four", client, server);
	SAME("own port of the other", net_port(six_client), 5003);
	talks("six", six_client, six);
	SAME("pktinfo", net_int(server, IPPROTO_IP, IP_PKTINFO), 1);
	SAME("timestamps", net_int(server, SOL_SOCKET, SO_TIMESTAMPNS), 1);
	SAME("receive buffer", net_int(server, SOL_SOCKET, SO_RCVBUF), 100000);
	SAME("broadcast", net_int(server, SOL_SOCKET, SO_BROADCAST), 1);
	SAME("path discovery", net_int(client, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_DO);
	SAME("recverr", net_int(client, IPPROTO_IP, IP_RECVERR), 1);
	SAME("v6 pktinfo", net_int(six, IPPROTO_IPV6, IPV6_RECVPKTINFO), 1);
	SAME("traffic class", net_int(six, IPPROTO_IPV6, IPV6_TCLASS), 0x20);
	for (int i = 0; i < 2; i++) {
		SAME("reuseport", net_int(shared[i], SOL_SOCKET, SO_REUSEPORT), 1);
		SAME("shared port", net_port(shared[i]), 5010);
	}
	p.fd = done;
	MUST(poll(&p, 1, 0));
	CHECK(p.revents & POLLRDHUP, "the direction that was shut down is open again");
	if (lite >= 0) {
		SAME("coverage", net_int(lite, IPPROTO_UDPLITE, 10), 8);
		SAME("port of UDP-Lite", net_port(lite), 5012);
	}
	guest_pass();
}
