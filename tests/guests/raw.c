/* Raw sockets of both families: protocol, filter of ICMP types, own headers, a connected one. */
#include "net.h"
#include <linux/icmp.h>

int main(int argc, char **argv)
{
	int icmp, own, six, conn;
	struct icmp_filter f = { ~(1u << ICMP_ECHOREPLY) }, g = { 0 };
	uint32_t f6[8], g6[8];
	struct {
		struct icmphdr h;
		char data[8];
	} ping = { .h = { .type = ICMP_ECHO, .un.echo = { .id = htons(7), .sequence = htons(1) } } };
	unsigned sum = 0;
	char in[256];
	union address a;
	socklen_t n;

	guest_init(argc, argv);
	net_up();
	icmp = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	MUST(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &f, sizeof(f)));
	net_set(icmp, IPPROTO_IP, IP_TTL, 9);
	own = MUST(socket(AF_INET, SOCK_RAW, 253));
	net_set(own, IPPROTO_IP, IP_HDRINCL, 1);
	n = net_addr(&a, AF_INET, 3, 0);
	MUST(bind(own, &a.sa, n));
	six = MUST(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	memset(f6, 0xa5, sizeof(f6));
	MUST(setsockopt(six, IPPROTO_ICMPV6, 1, f6, sizeof(f6)));
	conn = MUST(socket(AF_INET, SOCK_RAW, 254));
	n = net_addr(&a, AF_INET, 4, 0);
	MUST(connect(conn, &a.sa, n));
	guest_ready_wait();
	if (SPOIL("filter"))
		setsockopt(icmp, SOL_RAW, ICMP_FILTER, &g, sizeof(g));
	if (SPOIL("headers"))
		net_set(own, IPPROTO_IP, IP_HDRINCL, 0);
	if (SPOIL("not connected"))
		dup2(socket(AF_INET, SOCK_RAW, 254), conn);
	n = sizeof(g);
	MUST(getsockopt(icmp, SOL_RAW, ICMP_FILTER, &g, &n));
	SAME("filter", g.data, f.data);
	SAME("ttl", net_int(icmp, IPPROTO_IP, IP_TTL), 9);
	SAME("own headers", net_int(own, IPPROTO_IP, IP_HDRINCL), 1);
	SAME("protocol", net_int(own, SOL_SOCKET, SO_PROTOCOL), 253);
	n = sizeof(a);
	MUST(getsockname(own, &a.sa, &n));
	SAME("address", ntohl(a.v4.sin_addr.s_addr), 0x7f000003);
	n = sizeof(g6);
	MUST(getsockopt(six, IPPROTO_ICMPV6, 1, g6, &n));
	CHECK(!memcmp(f6, g6, sizeof(f6)), "the filter of ICMPv6 is another");
	CHECK(send(conn, "x", 1, 0) == 1, "the connected one cannot send: %s", strerror(errno));
	for (size_t i = 0; i < sizeof(ping); i += 2)
		sum += *(uint16_t *)((char *)&ping + i);
	ping.h.checksum = ~(sum + (sum >> 16));
	n = net_addr(&a, AF_INET, 1, 0);
	MUST(sendto(icmp, &ping, sizeof(ping), 0, &a.sa, n));
	CHECK(recv(icmp, in, sizeof(in), 0) >= 36 && in[20] == ICMP_ECHOREPLY, "no echo comes back");
	guest_pass();
}
