/* What guests with internet sockets share: a loopback device that is up, addresses, connections. */
#ifndef NET_H
#define NET_H
#include "guest.h"
#include <arpa/inet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

union address {
	struct sockaddr sa;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* The box has a network namespace of its own, with nothing in it that is up. */
static inline void net_up(void)
{
	struct ifreq r = { .ifr_name = "lo" };
	int fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	MUST(ioctl(fd, SIOCGIFFLAGS, &r));
	if (!(r.ifr_flags & IFF_UP)) {
		r.ifr_flags |= IFF_UP;
		MUST(ioctl(fd, SIOCSIFFLAGS, &r));
	}
	close(fd);
}

/* 127.0.0.last:port or [::1]:port. */
static inline socklen_t net_addr(union address *a, int family, int last, int port)
{
	memset(a, 0, sizeof(*a));
	if (family == AF_INET6) {
		a->v6.sin6_family = AF_INET6;
		a->v6.sin6_addr = in6addr_loopback;
		a->v6.sin6_port = htons(port);
		return sizeof(a->v6);
	}
	a->v4.sin_family = AF_INET;
	a->v4.sin_addr.s_addr = htonl(0x7f000000 | last);
	a->v4.sin_port = htons(port);
	return sizeof(a->v4);
}

static inline int net_int(int fd, int level, int name)
{
	int v = -1;
	socklen_t n = sizeof(v);

	if (getsockopt(fd, level, name, &v, &n))
		guest_fail("option %d of level %d: %s", name, level, strerror(errno));
	return v;
}

static inline void net_set(int fd, int level, int name, int v)
{
	if (setsockopt(fd, level, name, &v, sizeof(v)))
		guest_fail("setting option %d of level %d: %s", name, level, strerror(errno));
}

/* Own port of a socket. */
static inline int net_port(int fd)
{
	union address a = { 0 };
	socklen_t n = sizeof(a);

	MUST(getsockname(fd, &a.sa, &n));
	return ntohs(a.v4.sin_port);
}

/* A bound socket. */
static inline int net_bound(int family, int type, int last, int port)
{
	union address a;
	socklen_t n = net_addr(&a, family, last, port);
	int fd = MUST(socket(family, type | SOCK_CLOEXEC, 0));

	MUST(bind(fd, &a.sa, n));
	return fd;
}

static inline int net_listen(int family, int port, int backlog)
{
	int fd = net_bound(family, SOCK_STREAM, 1, port);

	MUST(listen(fd, backlog));
	return fd;
}

/* Connects to a listening socket of ours; both ends. */
static inline void net_pair(int listener, int family, int *client, int *server)
{
	union address a, own = { 0 };
	socklen_t n = net_addr(&a, family, 1, net_port(listener)), len = sizeof(own);

	/* its address may have been changed by a restore */
	MUST(getsockname(listener, &own.sa, &len));
	if (own.sa.sa_family == family)
		a = own;
	*client = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(*client, &a.sa, n));
	*server = MUST(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
}

/* State of a TCP socket. */
static inline int net_state(int fd)
{
	struct tcp_info i = { 0 };
	socklen_t n = sizeof(i);

	MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &n));
	return i.tcpi_state;
}

/* Sends all of a pattern. */
static inline void net_send(int fd, size_t len, unsigned seed)
{
	char *mem = malloc(len);

	guest_fill(mem, len, seed);
	for (size_t at = 0; at < len;) {
		ssize_t k = send(fd, mem + at, len - at, MSG_NOSIGNAL);

		CHECK(k > 0, "send after %zu of %zu bytes: %s", at, len, strerror(errno));
		at += k;
	}
	free(mem);
}

/* Receives exactly a pattern. */
static inline void net_recv(const char *what, int fd, size_t len, unsigned seed)
{
	char *mem = malloc(len);

	for (size_t at = 0; at < len;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t k;

		CHECK(poll(&p, 1, 5000) == 1, "%s: nothing comes after %zu of %zu bytes", what, at, len);
		k = recv(fd, mem + at, len - at, 0);
		CHECK(k > 0, "%s: recv after %zu of %zu bytes: %s", what, at, len, k ? strerror(errno) : "end");
		at += k;
	}
	CHECK(guest_filled(mem, len, seed), "%s: other bytes than were sent", what);
	free(mem);
}
#endif
