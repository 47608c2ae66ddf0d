/* Netlink sockets: a monitor of links, one that is connected to another, one that asks the kernel. */
#include "guest.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static int nl(int protocol, unsigned port, unsigned groups)
{
	struct sockaddr_nl a = { .nl_family = AF_NETLINK, .nl_pid = port, .nl_groups = groups };
	int s = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));

	if (port)
		MUST(bind(s, (void *)&a, sizeof(a)));
	return s;
}

int main(int argc, char **argv)
{
	struct sockaddr_nl a = { .nl_family = AF_NETLINK };
	struct {
		struct nlmsghdr h;
		struct rtgenmsg g;
	} ask = { { NLMSG_LENGTH(sizeof(struct rtgenmsg)), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 }, { AF_UNSPEC } };
	unsigned port = 0x60000000 + getpid();
	int monitor, one, two, raw, val;
	socklen_t len = sizeof(a), vlen = sizeof(val);
	char buf[64];

	guest_init(argc, argv);
	monitor = nl(NETLINK_ROUTE, port, RTMGRP_LINK | RTMGRP_IPV4_ROUTE);
	MUST(setsockopt(monitor, SOL_NETLINK, NETLINK_EXT_ACK, &(int){ 1 }, sizeof(int)));
	MUST(fcntl(monitor, F_SETFL, O_NONBLOCK));
	one = nl(NETLINK_USERSOCK, port, 0);
	two = nl(NETLINK_USERSOCK, port + 1, 0);
	a.nl_pid = port + 1;
	MUST(connect(one, (void *)&a, sizeof(a)));
	raw = nl(NETLINK_ROUTE, 0, 0);
	guest_ready_wait();

	MUST(getsockname(monitor, (void *)&a, &len));
	SAME("port", a.nl_pid, SPOIL("port") ? 1 : port);
	SAME("groups", a.nl_groups, SPOIL("groups") ? 0 : (RTMGRP_LINK | RTMGRP_IPV4_ROUTE));
	MUST(getsockopt(monitor, SOL_NETLINK, NETLINK_EXT_ACK, &val, &vlen));
	SAME("NETLINK_EXT_ACK", val, SPOIL("option") ? 0 : 1);
	SAME("flags", fcntl(monitor, F_GETFL), O_RDWR | O_NONBLOCK);
	CHECK(recv(monitor, buf, sizeof(buf), 0) == -1 && errno == EAGAIN, "the monitor has news");
	MUST(getpeername(one, (void *)&a, &len));
	SAME("peer", a.nl_pid, SPOIL("peer") ? 0 : port + 1);
	SAME("sent", send(one, "hello", 5, 0), 5);
	SAME("received", recv(two, buf, sizeof(buf), 0), 5);
	MUST(getsockname(raw, (void *)&a, &len));
	SAME("port of the unbound", a.nl_pid, 0);
	SAME("asked", send(raw, &ask, ask.h.nlmsg_len, 0), ask.h.nlmsg_len);
	CHECK(recv(raw, buf, sizeof(buf), SPOIL("asks") ? MSG_OOB : 0) > 0, "no answer");
	guest_pass();
}
