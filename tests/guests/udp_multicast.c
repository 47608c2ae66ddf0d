/* Multicast groups that UDP sockets have joined, on a device, of both families, one with a list of sources. */
#include "net.h"

static int four, six, picky, sender;

static struct group_req group_of(const char *ip, int family)
{
	struct group_req r = { .gr_interface = if_nametoindex("lo") };
	union address a = { 0 };

	a.sa.sa_family = family;
	inet_pton(family, ip, family == AF_INET ? (void *)&a.v4.sin_addr : (void *)&a.v6.sin6_addr);
	memcpy(&r.gr_group, &a, sizeof(a));
	return r;
}

static int arrives(int fd, const char *ip, int port)
{
	union address a = { 0 };
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char b[8];

	a.v4.sin_family = AF_INET;
	a.v4.sin_port = htons(port);
	inet_pton(AF_INET, ip, &a.v4.sin_addr);
	MUST(sendto(sender, "mc", 2, 0, &a.sa, sizeof(a.v4)));
	return poll(&p, 1, 300) == 1 && recv(fd, b, sizeof(b), 0) == 2;
}

int main(int argc, char **argv)
{
	struct in_addr lo = { htonl(INADDR_LOOPBACK) };
	struct group_req r;
	struct group_source_req s = { 0 };
	union address a = { 0 };

	guest_init(argc, argv);
	net_up();
	sender = net_bound(AF_INET, SOCK_DGRAM, 1, 0);
	MUST(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &lo, sizeof(lo)));
	net_set(sender, IPPROTO_IP, IP_MULTICAST_TTL, 3);
	four = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	a.v4.sin_family = AF_INET;
	a.v4.sin_port = htons(5301);
	MUST(bind(four, &a.sa, sizeof(a.v4)));
	net_set(four, IPPROTO_IP, IP_MULTICAST_ALL, 0);
	r = group_of("239.1.2.3", AF_INET);
	MUST(setsockopt(four, IPPROTO_IP, MCAST_JOIN_GROUP, &r, sizeof(r)));
	r = group_of("239.1.2.4", AF_INET);
	MUST(setsockopt(four, IPPROTO_IP, MCAST_JOIN_GROUP, &r, sizeof(r)));
	picky = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	a.v4.sin_port = htons(5302);
	MUST(bind(picky, &a.sa, sizeof(a.v4)));
	net_set(picky, IPPROTO_IP, IP_MULTICAST_ALL, 0);
	r = group_of("239.1.2.5", AF_INET);
	s.gsr_interface = r.gr_interface;
	s.gsr_group = r.gr_group;
	r = group_of("127.0.0.1", AF_INET);
	s.gsr_source = r.gr_group;
	MUST(setsockopt(picky, IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &s, sizeof(s)));
	six = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
	r = group_of("ff15::1234", AF_INET6);
	MUST(setsockopt(six, IPPROTO_IPV6, MCAST_JOIN_GROUP, &r, sizeof(r)));
	CHECK(arrives(four, "239.1.2.3", 5301) && arrives(picky, "239.1.2.5", 5302), "it does not work at all");
	guest_ready_wait();
	if (SPOIL("left")) {
		r = group_of("239.1.2.4", AF_INET);
		setsockopt(four, IPPROTO_IP, MCAST_LEAVE_GROUP, &r, sizeof(r));
	}
	if (SPOIL("left six")) {
		r = group_of("ff15::1234", AF_INET6);
		setsockopt(six, IPPROTO_IPV6, MCAST_LEAVE_GROUP, &r, sizeof(r));
	}
	if (SPOIL("source"))
		setsockopt(picky, IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, &s, sizeof(s));
	SAME("ttl", net_int(sender, IPPROTO_IP, IP_MULTICAST_TTL), 3);
	CHECK(arrives(four, "239.1.2.3", 5301), "the first group is not joined");
	CHECK(arrives(four, "239.1.2.4", 5301), "the second group is not joined");
	CHECK(!arrives(four, "239.1.2.5", 5301), "the group of another is joined");
	CHECK(arrives(picky, "239.1.2.5", 5302), "the group with a source is not joined");
	r = group_of("ff15::1234", AF_INET6);
	CHECK(setsockopt(six, IPPROTO_IPV6, MCAST_JOIN_GROUP, &r, sizeof(r)) && errno == EADDRINUSE,
	      "the group of IPv6 is not joined");
	guest_pass();
}
