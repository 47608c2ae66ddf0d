/* UDP and UDP-Lite sockets that hold back part of a datagram: by UDP_CORK and by MSG_MORE, of both families, to a connected and to a
 * given address, in several pieces, short and long. Nothing is sent before the program says so, and then all of it. */
#include "net.h"
#include <netinet/udp.h>

#define CASES 6

struct held {
	int from, to, family;
	size_t len;
	unsigned seed;
	const char *what;
};

/* Gives a socket some more of its datagram. */
static void more(struct held *h, size_t len, int flags, const union address *a, socklen_t n)
{
	static char mem[1 << 16];

	guest_fill(mem, sizeof(mem), h->seed);
	CHECK(sendto(h->from, mem + h->len, len, flags, a ? &a->sa : NULL, n) == (ssize_t)len, "%s: sendto: %s", h->what,
	      strerror(errno));
	h->len += len;
}

/* The whole datagram arrives. */
static void arrives(struct held *h)
{
	static char mem[1 << 16], want[1 << 16];
	struct pollfd p = { .fd = h->to, .events = POLLIN };

	CHECK(poll(&p, 1, 5000) == 1, "%s: nothing arrives", h->what);
	SAME(h->what, recv(h->to, mem, sizeof(mem), 0), h->len);
	guest_fill(want, sizeof(want), h->seed);
	CHECK(!memcmp(mem, want, h->len), "%s: other bytes than were sent", h->what);
}

static int lite(int last, int port)
{
	union address a;
	socklen_t n = net_addr(&a, AF_INET, last, port);
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);

	if (fd >= 0)
		MUST(bind(fd, &a.sa, n));
	return fd;
}

int main(int argc, char **argv)
{
	struct held h[CASES] = {
		{ .family = AF_INET, .what = "connected, corked" }, { .family = AF_INET, .what = "to an address, more" },
		{ .family = AF_INET6, .what = "of IPv6" },	    { .family = AF_INET, .what = "long" },
		{ .family = AF_INET6, .what = "mapped" },	    { .family = AF_INET, .what = "of UDP-Lite" },
	};
	union address a[CASES];
	socklen_t n[CASES];
	char b[8];

	guest_init(argc, argv);
	net_up();
	for (int i = 0; i < CASES; i++) {
		h[i].seed = 100 * i;
		if (i == 5) {
			h[i].from = lite(1, 5305);
			h[i].to = lite(2, 5405);
			n[i] = net_addr(&a[i], AF_INET, 2, 5405);
			continue;
		}
		h[i].to = net_bound(i == 4 ? AF_INET : h[i].family, SOCK_DGRAM, 2, 5400 + i);
		n[i] = net_addr(&a[i], i == 4 ? AF_INET : h[i].family, 2, 5400 + i);
		h[i].from = MUST(socket(h[i].family, SOCK_DGRAM, 0));
	}
	n[4] = net_addr(&a[4], AF_INET6, 1, 5404);
	MUST(inet_pton(AF_INET6, "::ffff:127.0.0.2", &a[4].v6.sin6_addr));
	MUST(connect(h[0].from, &a[0].sa, n[0]));
	net_set(h[0].from, IPPROTO_UDP, UDP_CORK, 1);
	net_set(h[0].from, SOL_SOCKET, SO_SNDBUF, 30000);
	more(&h[0], 5, 0, NULL, 0);
	more(&h[0], 7000, 0, NULL, 0);
	more(&h[0], 1, 0, NULL, 0);
	more(&h[1], 100, MSG_MORE, &a[1], n[1]);
	more(&h[2], 3000, MSG_MORE, &a[2], n[2]);
	more(&h[2], 3001, MSG_MORE, &a[2], n[2]);
	more(&h[3], 20000, MSG_MORE, &a[3], n[3]);
	more(&h[3], 40000, MSG_MORE, &a[3], n[3]);
	more(&h[4], 50, MSG_MORE, &a[4], n[4]);
	if (h[5].from >= 0)
		more(&h[5], 60, MSG_MORE, &a[5], n[5]);
	guest_ready_wait();
	if (SPOIL("early"))
		MUST(send(h[1].from, "", 0, 0));
	for (int i = 0; i < CASES; i++)
		if (h[i].from >= 0)
			CHECK(recv(h[i].to, b, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "%s: it was sent", h[i].what);
	SAME("cork", net_int(h[0].from, IPPROTO_UDP, UDP_CORK), 1);
	SAME("send buffer", net_int(h[0].from, SOL_SOCKET, SO_SNDBUF), 60000);
	if (SPOIL("piece"))
		MUST(send(h[0].from, "more", 4, 0));
	more(&h[0], 11, 0, NULL, 0);
	net_set(h[0].from, IPPROTO_UDP, UDP_CORK, 0);
	for (int i = 1; i < CASES; i++)
		if (h[i].from >= 0)
			more(&h[i], 9, 0, NULL, 0);
	for (int i = 0; i < CASES; i++)
		if (h[i].from >= 0)
			arrives(&h[i]);
	guest_pass();
}
