/*
 * A task below the root with a network namespace of its own, as a container in a container has it: a pair of devices joins it with
 * that of the root, and a macvlan device stands upon one there. Both ends answer as before, with the same names, numbers and addresses.
 */
#include "net.h"
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

#define PORT 7707

static struct {
	struct nlmsghdr h;
	struct ifinfomsg i;
	char room[400];
} m;

static struct nlattr *attr(int type, const void *value, int len)
{
	struct nlattr *a = (void *)((char *)&m + NLMSG_ALIGN(m.h.nlmsg_len));

	a->nla_type = type;
	a->nla_len = NLA_HDRLEN + len;
	memcpy((char *)a + NLA_HDRLEN, value, len);
	m.h.nlmsg_len = NLMSG_ALIGN(m.h.nlmsg_len) + NLA_ALIGN(a->nla_len);
	return a;
}

static void ends(struct nlattr *nest)
{
	nest->nla_len = (char *)&m + m.h.nlmsg_len - (char *)nest;
}

static void begin(const char *name)
{
	memset(&m, 0, sizeof(m));
	m.h.nlmsg_len = NLMSG_LENGTH(sizeof(m.i));
	m.h.nlmsg_type = RTM_NEWLINK;
	m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
	attr(IFLA_IFNAME, name, strlen(name) + 1);
}

/* What the kernel says to the message: 0 or an error number. */
static int told(void)
{
	int s = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	struct { struct nlmsghdr h; struct nlmsgerr e; char room[1000]; } r;

	MUST(send(s, &m, m.h.nlmsg_len, 0));
	MUST(recv(s, &r, sizeof(r), 0));
	close(s);
	return -r.e.error;
}

static void pair(const char *here, const char *there, int pid)
{
	struct ifinfomsg none = { 0 };
	struct nlattr *info, *data, *peer;

	begin(here);
	info = attr(IFLA_LINKINFO, "", 0);
	attr(IFLA_INFO_KIND, "veth", 4);
	data = attr(IFLA_INFO_DATA, "", 0);
	peer = attr(VETH_INFO_PEER, &none, sizeof(none));
	attr(IFLA_IFNAME, there, strlen(there) + 1);
	attr(IFLA_NET_NS_PID, &pid, sizeof(pid));
	ends(peer);
	ends(data);
	ends(info);
	SAME("veth", told(), 0);
}

/* On a kernel without such devices there is none. */
static int upon(int lower, const char *there, int pid)
{
	struct nlattr *info;
	int e;

	begin(there);
	attr(IFLA_LINK, &lower, sizeof(lower));
	attr(IFLA_NET_NS_PID, &pid, sizeof(pid));
	info = attr(IFLA_LINKINFO, "", 0);
	attr(IFLA_INFO_KIND, "macvlan", 7);
	ends(info);
	e = told();
	CHECK(!e || e == EOPNOTSUPP, "macvlan: %s", strerror(e));
	return !e;
}

static struct sockaddr_in at(int last)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };

	a.sin_addr.s_addr = htonl(0x0a4d0000 | last);
	return a;
}

/* Gives a device an address, and has it go up. */
static void raise_with(const char *name, int last)
{
	struct sockaddr_in a = at(last), mask = at(0);
	struct ifreq r = {};
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));

	strcpy(r.ifr_name, name);
	a.sin_port = mask.sin_port = 0;
	mask.sin_addr.s_addr = htonl(0xffffff00);
	memcpy(&r.ifr_addr, &a, sizeof(a));
	MUST(ioctl(fd, SIOCSIFADDR, &r));
	memcpy(&r.ifr_netmask, &mask, sizeof(mask));
	MUST(ioctl(fd, SIOCSIFNETMASK, &r));
	MUST(ioctl(fd, SIOCGIFFLAGS, &r));
	r.ifr_flags |= IFF_UP;
	MUST(ioctl(fd, SIOCSIFFLAGS, &r));
	close(fd);
}

static int bound(int last)
{
	struct sockaddr_in a = at(last);
	struct timeval soon = { 5, 0 };
	int s = MUST(socket(AF_INET, SOCK_DGRAM, 0));

	MUST(bind(s, (void *)&a, sizeof(a)));
	MUST(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon)));
	return s;
}

/* In the namespace below: answers datagrams, and tells the numbers of its devices by their names. */
static void below(int s, int talk)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char b[64];
	int n;

	while (read(talk, b, sizeof(b)) > 0) {
		if (b[0]) {
			n = if_nametoindex(b);
		} else {
			n = MUST(recvfrom(s, b, sizeof(b), 0, (void *)&from, &len));
			MUST(sendto(s, b, n, 0, (void *)&from, len));
		}
		MUST(write(talk, &n, sizeof(n)));
	}
	_exit(0);
}

static int ask(int talk, const char *name)
{
	int n;

	MUST(write(talk, name, strlen(name) + 1));
	SAME("answer", MUST(read(talk, &n, sizeof(n))), sizeof(n));
	return n;
}

int main(int argc, char **argv)
{
	struct sockaddr_in there = at(2);
	int s, talk[2], pid, mac, lower, numbers[2];
	char b[64] = { 0 };

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNET);
	net_up();
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, talk));
	pid = MUST(fork());
	if (!pid) {
		close(talk[0]);
		MUST(unshare(CLONE_NEWNET));
		net_up();
		MUST(write(talk[1], b, 1));
		MUST(read(talk[1], b, 1));
		raise_with("inner", 2);
		below(bound(2), talk[1]);
	}
	close(talk[1]);
	MUST(read(talk[0], b, 1));
	pair("outer", "inner", pid);
	raise_with("outer", 1);
	lower = if_nametoindex("outer");
	mac = upon(lower, "upon", pid);
	s = bound(1);
	MUST(write(talk[0], b, 1));
	numbers[0] = ask(talk[0], "inner");
	numbers[1] = ask(talk[0], "upon");
	guest_ready_wait();

	if (SPOIL("pair")) {
		begin("outer");
		m.h.nlmsg_type = RTM_DELLINK;
		m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
		SAME("RTM_DELLINK", told(), 0);
	}
	if (SPOIL("upon"))
		numbers[1]++;
	SAME("outer", (int)if_nametoindex("outer"), lower);
	SAME("inner", ask(talk[0], "inner"), numbers[0]);
	SAME("upon", ask(talk[0], "upon"), numbers[1]);
	CHECK(!mac == !numbers[1] || SPOIL("upon"), "number %d", numbers[1]);
	MUST(sendto(s, "across", 7, 0, (void *)&there, sizeof(there)));
	SAME("bytes below", ask(talk[0], ""), 7);
	SAME("bytes back", MUST(recv(s, b, sizeof(b), 0)), 7);
	CHECK(!strcmp(b, "across"), "got %s", b);
	guest_pass();
}
