/* TCP sockets without a connection: fresh, bound, listening on both families, with options. */
#include "net.h"

static int fresh, bound, v4, v6, dual;

static void accepts(const char *what, int listener, int family, int to_port)
{
	union address a;
	socklen_t n = net_addr(&a, family, 1, to_port);
	int c = MUST(socket(family, SOCK_STREAM, 0)), s;
	char b = 'x';

	CHECK(!connect(c, &a.sa, n), "%s: connect: %s", what, strerror(errno));
	s = MUST(accept(listener, NULL, NULL));
	if (net_int(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT) == 0) {
		MUST(write(s, &b, 1));
		CHECK(read(c, &b, 1) == 1 && b == 'x', "%s: the byte does not come", what);
	}
	close(c);
	close(s);
}

int main(int argc, char **argv)
{
	union address a;
	socklen_t n = sizeof(a);
	struct tcp_info info;
	struct linger l;
	char name[16] = "";
	int one;

	guest_init(argc, argv);
	net_up();
	fresh = MUST(socket(AF_INET, SOCK_STREAM, 0));
	net_set(fresh, SOL_SOCKET, SO_KEEPALIVE, 1);
	net_set(fresh, IPPROTO_TCP, TCP_KEEPIDLE, 77);
	net_set(fresh, IPPROTO_TCP, TCP_NODELAY, 1);
	net_set(fresh, IPPROTO_TCP, TCP_MAXSEG, 900);
	net_set(fresh, SOL_SOCKET, SO_SNDBUF, 30000);
	MUST(setsockopt(fresh, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	l = (struct linger){ 1, 5 };
	MUST(setsockopt(fresh, SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	bound = net_bound(AF_INET, SOCK_STREAM, 5, 4005);
	v4 = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	net_addr(&a, AF_INET, 1, 4001);
	net_set(v4, SOL_SOCKET, SO_REUSEADDR, 1);
	net_set(v4, IPPROTO_TCP, TCP_FASTOPEN, 9);
	net_set(v4, IPPROTO_IP, IP_TOS, 0x10);
	net_set(v4, IPPROTO_IP, IP_TTL, 33);
	MUST(bind(v4, &a.sa, sizeof(a.v4)));
	MUST(listen(v4, 7));
	v6 = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	net_set(v6, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	net_set(v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12);
	net_addr(&a, AF_INET6, 1, 4001);
	MUST(bind(v6, &a.sa, sizeof(a.v6)));
	MUST(listen(v6, 3));
	dual = MUST(socket(AF_INET6, SOCK_STREAM, 0));
	net_set(dual, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	memset(&a, 0, sizeof(a));
	a.v6.sin6_family = AF_INET6;
	a.v6.sin6_port = htons(4002);
	MUST(bind(dual, &a.sa, sizeof(a.v6)));
	MUST(listen(dual, 5));
	guest_ready_wait();
	if (SPOIL("backlog"))
		listen(v4, 8);
	if (SPOIL("nodelay"))
		net_set(fresh, IPPROTO_TCP, TCP_NODELAY, 0);
	if (SPOIL("buffer"))
		net_set(fresh, SOL_SOCKET, SO_SNDBUF, 60000);
	if (SPOIL("deaf"))
		shutdown(dual, SHUT_RD);
	if (SPOIL("other address"))
		dup2(net_bound(AF_INET, SOCK_STREAM, 6, 4005), bound);
	SAME("keepalive", net_int(fresh, SOL_SOCKET, SO_KEEPALIVE), 1);
	SAME("keepidle", net_int(fresh, IPPROTO_TCP, TCP_KEEPIDLE), 77);
	SAME("nodelay", net_int(fresh, IPPROTO_TCP, TCP_NODELAY), 1);
	SAME("send buffer", net_int(fresh, SOL_SOCKET, SO_SNDBUF), 60000);
	n = sizeof(l);
	MUST(getsockopt(fresh, SOL_SOCKET, SO_LINGER, &l, &n));
	CHECK(l.l_onoff == 1 && l.l_linger == 5, "linger is %d %d", l.l_onoff, l.l_linger);
	n = sizeof(a);
	MUST(getsockname(bound, &a.sa, &n));
	SAME("port of the bound one", ntohs(a.v4.sin_port), 4005);
	SAME("address of the bound one", ntohl(a.v4.sin_addr.s_addr), 0x7f000005);
	SAME("flags", fcntl(v4, F_GETFL), O_RDWR | O_NONBLOCK);
	SAME("reuseaddr", net_int(v4, SOL_SOCKET, SO_REUSEADDR), 1);
	SAME("reuseaddr of the other", net_int(v6, SOL_SOCKET, SO_REUSEADDR), 0);
	SAME("reuseport", net_int(v4, SOL_SOCKET, SO_REUSEPORT), 0);
	SAME("tos", net_int(v4, IPPROTO_IP, IP_TOS), 0x10);
	SAME("ttl", net_int(v4, IPPROTO_IP, IP_TTL), 33);
	n = sizeof(info);
	MUST(getsockopt(v4, IPPROTO_TCP, TCP_INFO, &info, &n));
	SAME("state", info.tcpi_state, TCP_LISTEN);
	SAME("backlog", info.tcpi_sacked, 7);
	SAME("v6only", net_int(v6, IPPROTO_IPV6, IPV6_V6ONLY), 1);
	SAME("v6only of the dual one", net_int(dual, IPPROTO_IPV6, IPV6_V6ONLY), 0);
	accepts("v4", v4, AF_INET, 4001);
	accepts("v6", v6, AF_INET6, 4001);
	one = net_state(dual);
	SAME("state of the dual one", one, TCP_LISTEN);
	accepts("dual by v4", dual, AF_INET, 4002);
	accepts("dual by v6", dual, AF_INET6, 4002);
	SAME("state of the fresh one", net_state(fresh), TCP_CLOSE);
	n = sizeof(name);
	MUST(getsockopt(fresh, IPPROTO_TCP, TCP_CONGESTION, name, &n));
	/* CRIU has no field for these */
	if (strcmp(name, "reno") || net_int(v4, IPPROTO_TCP, TCP_FASTOPEN) != 9 ||
	    net_int(v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS) != 12 || net_int(fresh, IPPROTO_TCP, TCP_MAXSEG) != 900)
		guest_fail("congestion control %s, fast open %d, hops %d, segment %d", name,
			   net_int(v4, IPPROTO_TCP, TCP_FASTOPEN), net_int(v6, IPPROTO_IPV6, IPV6_UNICAST_HOPS),
			   net_int(fresh, IPPROTO_TCP, TCP_MAXSEG));
	guest_pass();
}
