/* Options of a TCP connection and of its socket. */
#include "net.h"

static int client, server;

static void check(void)
{
	struct timeval t;
	socklen_t n = sizeof(t);
	char name[16] = "";

	SAME("keepalive", net_int(client, SOL_SOCKET, SO_KEEPALIVE), 1);
	SAME("keepidle", net_int(client, IPPROTO_TCP, TCP_KEEPIDLE), 70);
	SAME("keepintvl", net_int(client, IPPROTO_TCP, TCP_KEEPINTVL), 20);
	SAME("keepcnt", net_int(client, IPPROTO_TCP, TCP_KEEPCNT), 4);
	SAME("nodelay", net_int(client, IPPROTO_TCP, TCP_NODELAY), 1);
	SAME("cork", net_int(server, IPPROTO_TCP, TCP_CORK), 1);
	SAME("reuseaddr", net_int(client, SOL_SOCKET, SO_REUSEADDR), 1);
	SAME("reuseaddr of the other", net_int(server, SOL_SOCKET, SO_REUSEADDR), 0);
	SAME("mark", net_int(client, SOL_SOCKET, SO_MARK), 77);
	SAME("priority", net_int(client, SOL_SOCKET, SO_PRIORITY), 3);
	SAME("tos", net_int(client, IPPROTO_IP, IP_TOS), 8);
	SAME("oobinline", net_int(server, SOL_SOCKET, SO_OOBINLINE), 1);
	SAME("send buffer", net_int(server, SOL_SOCKET, SO_SNDBUF), 80000);
	SAME("buffers set by the program", net_int(server, SOL_SOCKET, 72), 1);
	SAME("buffers set by the other", net_int(client, SOL_SOCKET, 72), 0);
	SAME("lowat", net_int(server, SOL_SOCKET, SO_RCVLOWAT), 3);
	MUST(getsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &t, &n));
	CHECK(t.tv_sec == 4 && t.tv_usec == 500000, "timeout %ld.%06ld", (long)t.tv_sec, (long)t.tv_usec);
	n = sizeof(name);
	MUST(getsockopt(client, SOL_SOCKET, SO_BINDTODEVICE, name, &n));
	CHECK(!strcmp(name, "lo"), "device %s", name);
}

int main(int argc, char **argv)
{
	struct timeval t = { 4, 500000 };
	int listener;
	char b[8];

	guest_init(argc, argv);
	net_up();
	listener = net_listen(AF_INET, 6001, 8);
	net_pair(listener, AF_INET, &client, &server);
	net_set(client, SOL_SOCKET, SO_KEEPALIVE, 1);
	net_set(client, IPPROTO_TCP, TCP_KEEPIDLE, 70);
	net_set(client, IPPROTO_TCP, TCP_KEEPINTVL, 20);
	net_set(client, IPPROTO_TCP, TCP_KEEPCNT, 4);
	net_set(client, IPPROTO_TCP, TCP_NODELAY, 1);
	net_set(client, SOL_SOCKET, SO_REUSEADDR, 1);
	net_set(client, SOL_SOCKET, SO_MARK, 77);
	net_set(client, IPPROTO_IP, IP_TOS, 8);
	net_set(client, SOL_SOCKET, SO_PRIORITY, 3);
	net_set(server, IPPROTO_TCP, TCP_CORK, 1);
	net_set(server, SOL_SOCKET, SO_OOBINLINE, 1);
	net_set(server, SOL_SOCKET, SO_SNDBUF, 40000);
	net_set(server, SOL_SOCKET, SO_RCVLOWAT, 3);
	MUST(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)));
	MUST(setsockopt(client, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
	MUST(write(server, "held", 4));
	guest_ready_wait();
	if (SPOIL("cork"))
		net_set(server, IPPROTO_TCP, TCP_CORK, 0);
	if (SPOIL("keepcnt"))
		net_set(client, IPPROTO_TCP, TCP_KEEPCNT, 5);
	if (SPOIL("reuse"))
		net_set(client, SOL_SOCKET, SO_REUSEADDR, 0);
	check();
	net_set(server, IPPROTO_TCP, TCP_CORK, 0);
	CHECK(recv(client, b, 4, MSG_WAITALL) == 4 && !memcmp(b, "held", 4), "what was corked does not come");
	net_send(client, 300, 1);
	net_recv("up", server, 300, 1);
	guest_pass();
}
