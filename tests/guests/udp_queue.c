/* UDP sockets in which datagrams wait: short, long, empty ones, of several senders, of both families; to any address, to a
 * certain one, and connected. */
#include "net.h"

#define SENDERS 3
static const size_t lengths[] = { 5, 0, 1400, 60000, 1 };

static void sends(int family, int from, int last, int port, unsigned seed)
{
	char *mem = malloc(1 << 16);
	union address a;
	socklen_t n = net_addr(&a, family, last, port);

	for (unsigned i = 0; i < 5; i++) {
		guest_fill(mem, 1 << 16, seed + i);
		CHECK(sendto(from, mem, lengths[i], 0, &a.sa, n) == (ssize_t)lengths[i], "sendto: %s", strerror(errno));
	}
	free(mem);
}

static void takes(const char *what, int fd, int from, unsigned seed)
{
	char *mem = malloc(1 << 16), *want = malloc(1 << 16);

	for (unsigned i = 0; i < 5; i++) {
		union address a = { 0 };
		socklen_t n = sizeof(a);
		ssize_t k = recvfrom(fd, mem, 1 << 16, MSG_DONTWAIT, &a.sa, &n);

		CHECK(k >= 0, "%s: datagram %u is lost: %s", what, i, strerror(errno));
		SAME("length of a datagram", k, lengths[i]);
		guest_fill(want, 1 << 16, seed + i);
		CHECK(!memcmp(mem, want, k), "%s: datagram %u has other bytes", what, i);
		SAME("port of its sender", ntohs(a.v4.sin_port), from);
	}
	free(mem);
	free(want);
}

int main(int argc, char **argv)
{
	int any, one, six, conn, senders[SENDERS], six_sender;
	char b[16];
	union address a;
	socklen_t n;

	guest_init(argc, argv);
	net_up();
	any = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	n = net_addr(&a, AF_INET, 1, 5101);
	a.v4.sin_addr.s_addr = INADDR_ANY;
	MUST(bind(any, &a.sa, n));
	net_set(any, IPPROTO_IP, IP_PKTINFO, 1);
	one = net_bound(AF_INET, SOCK_DGRAM, 9, 5102);
	six = net_bound(AF_INET6, SOCK_DGRAM, 1, 5103);
	conn = net_bound(AF_INET, SOCK_DGRAM, 1, 5104);
	for (int i = 0; i < SENDERS; i++)
		senders[i] = net_bound(AF_INET, SOCK_DGRAM, 1 + i, 5110 + i);
	six_sender = net_bound(AF_INET6, SOCK_DGRAM, 1, 5120);
	n = net_addr(&a, AF_INET, 1, 5110);
	MUST(connect(conn, &a.sa, n));
	net_set(one, SOL_SOCKET, SO_RCVBUF, 200000);
	for (int i = 0; i < 2; i++)
		sends(AF_INET, senders[i], 4, 5101, 10 * i);
	sends(AF_INET, senders[2], 9, 5102, 30);
	sends(AF_INET6, six_sender, 1, 5103, 40);
	sends(AF_INET, senders[0], 1, 5104, 50);
	guest_ready_wait();
	if (SPOIL("first"))
		recv(one, b, 1, MSG_DONTWAIT);
	if (SPOIL("more"))
		sends(AF_INET, senders[1], 9, 5102, 30);
	takes("to any", any, 5110, 0);
	takes("to any", any, 5111, 10);
	takes("to one", one, 5112, 30);
	takes("of IPv6", six, 5120, 40);
	takes("connected", conn, 5110, 50);
	SAME("receive buffer", net_int(one, SOL_SOCKET, SO_RCVBUF), 400000);
	for (int i = 0; i < 4; i++) {
		int fd = (int[]){ any, one, six, conn }[i];

		SAME("peek offset", net_int(fd, SOL_SOCKET, SO_PEEK_OFF), -1);
		CHECK(recv(fd, b, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "more waits than before");
	}
	guest_pass();
}
