/* A ping socket: an ICMP datagram socket with an identifier. */
#include "net.h"
#include <linux/icmp.h>

int main(int argc, char **argv)
{
	struct icmphdr ping = { .type = ICMP_ECHO }, pong;
	int fd, range = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC);
	union address a;
	socklen_t n;

	guest_init(argc, argv);
	net_up();
	if (range < 0 || write(range, "0 0", 3) != 3)
		guest_skip("ping_group_range cannot be set");
	close(range);
	fd = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
	n = net_addr(&a, AF_INET, 1, 4321);
	MUST(bind(fd, &a.sa, n));
	net_set(fd, IPPROTO_IP, IP_RECVTTL, 1);
	guest_ready_wait();
	if (SPOIL("identifier")) {
		close(fd);
		dup2(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), fd);
		MUST(sendto(fd, &ping, sizeof(ping), 0, &a.sa, n));
	}
	SAME("identifier", net_port(fd), 4321);
	SAME("recvttl", net_int(fd, IPPROTO_IP, IP_RECVTTL), 1);
	n = net_addr(&a, AF_INET, 1, 0);
	MUST(sendto(fd, &ping, sizeof(ping), 0, &a.sa, n));
	CHECK(recv(fd, &pong, sizeof(pong), 0) == sizeof(pong), "no echo: %s", strerror(errno));
	SAME("answer", pong.type, ICMP_ECHOREPLY);
	SAME("its identifier", ntohs(pong.un.echo.id), 4321);
	guest_pass();
}
