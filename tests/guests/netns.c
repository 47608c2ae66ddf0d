/* What is in a network namespace of one's own: loopback, a bridge with address, a route, a neighbour, settings of the namespace and of a
   device; a listener on each address. */
#include "net.h"
#include <net/if_arp.h>
#include <net/route.h>

static int fd;

static struct sockaddr_in v4(const char *text, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

	MUST(inet_pton(AF_INET, text, &a.sin_addr) == 1 ? 0 : -1);
	return a;
}

static void write_to(const char *file, const char *text)
{
	int f = MUST(open(file, O_WRONLY | O_CLOEXEC));

	MUST(write(f, text, strlen(text)));
	close(f);
}

static void read_from(const char *file, char *text, size_t size)
{
	int f = MUST(open(file, O_RDONLY | O_CLOEXEC));
	ssize_t n = MUST(read(f, text, size - 1));

	text[n] = 0;
	close(f);
}

static void is_set(const char *file, const char *value)
{
	char text[64];

	read_from(file, text, sizeof(text));
	CHECK(!strncmp(text, value, strlen(value)), "%s has %s, not %s", file, text, value);
}

static void flags(const char *name, int set)
{
	struct ifreq r = {};

	strcpy(r.ifr_name, name);
	MUST(ioctl(fd, SIOCGIFFLAGS, &r));
	r.ifr_flags |= set;
	MUST(ioctl(fd, SIOCSIFFLAGS, &r));
}

static void route(unsigned long what)
{
	struct rtentry r = { .rt_flags = RTF_UP | RTF_GATEWAY, .rt_metric = 8 };
	struct sockaddr_in to = v4("10.99.0.0", 0), mask = v4("255.255.0.0", 0), via = v4("10.9.0.2", 0);

	memcpy(&r.rt_dst, &to, sizeof(to));
	memcpy(&r.rt_genmask, &mask, sizeof(mask));
	memcpy(&r.rt_gateway, &via, sizeof(via));
	MUST(ioctl(fd, what, &r));
}

static int neighbour(unsigned long what, struct arpreq *r)
{
	struct sockaddr_in a = v4("10.9.0.77", 0);

	memcpy(&r->arp_pa, &a, sizeof(a));
	strcpy(r->arp_dev, "br7");
	return ioctl(fd, what, r);
}

static int listener(const char *text, int port)
{
	struct sockaddr_in a = v4(text, port);
	int s = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));

	MUST(bind(s, (struct sockaddr *)&a, sizeof(a)));
	MUST(listen(s, 5));
	return s;
}

static void can_be_reached(int s, const char *text, int port)
{
	struct sockaddr_in a = v4(text, port);
	int c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));

	CHECK(!connect(c, (struct sockaddr *)&a, sizeof(a)), "%s: %s", text, strerror(errno));
	close(MUST(accept(s, NULL, NULL)));
	close(c);
}

int main(int argc, char **argv)
{
	static const unsigned char mac[6] = { 2, 0, 0, 0, 0, 77 };
	unsigned char own[6];
	struct sockaddr_in a;
	struct arpreq arp;
	struct ifreq r;
	char text[4096];
	int on_lo, on_bridge, index;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNET);
	fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	net_up();
	MUST(ioctl(fd, SIOCBRADDBR, "br7"));
	memset(&r, 0, sizeof(r));
	strcpy(r.ifr_name, "br7");
	a = v4("10.9.0.1", 0);
	memcpy(&r.ifr_addr, &a, sizeof(a));
	MUST(ioctl(fd, SIOCSIFADDR, &r));
	a = v4("255.255.255.0", 0);
	memcpy(&r.ifr_netmask, &a, sizeof(a));
	MUST(ioctl(fd, SIOCSIFNETMASK, &r));
	r.ifr_mtu = 1400;
	MUST(ioctl(fd, SIOCSIFMTU, &r));
	flags("br7", IFF_UP);
	index = MUST(ioctl(fd, SIOCGIFINDEX, &r) ? -1 : r.ifr_ifindex);
	MUST(ioctl(fd, SIOCGIFHWADDR, &r));
	memcpy(own, r.ifr_hwaddr.sa_data, 6);
	route(SIOCADDRT);
	memset(&arp, 0, sizeof(arp));
	arp.arp_flags = ATF_PERM | ATF_COM;
	arp.arp_ha.sa_family = ARPHRD_ETHER;
	memcpy(arp.arp_ha.sa_data, mac, 6);
	MUST(neighbour(SIOCSARP, &arp));
	write_to("/proc/sys/net/ipv4/conf/br7/rp_filter", "2");
	write_to("/proc/sys/net/ipv4/ip_local_port_range", "20000 30001");
	write_to("/proc/sys/net/ipv4/conf/all/forwarding", "1");
	on_lo = listener("127.0.0.1", 7007);
	on_bridge = listener("10.9.0.1", 7008);
	guest_ready_wait();
	if (SPOIL("down")) {
		memset(&r, 0, sizeof(r));
		strcpy(r.ifr_name, "br7");
		MUST(ioctl(fd, SIOCSIFFLAGS, &r));
	}
	if (SPOIL("route"))
		route(SIOCDELRT);
	if (SPOIL("neighbour"))
		MUST(neighbour(SIOCDARP, &arp));
	if (SPOIL("setting"))
		write_to("/proc/sys/net/ipv4/conf/br7/rp_filter", "0");
	memset(&r, 0, sizeof(r));
	strcpy(r.ifr_name, "br7");
	MUST(ioctl(fd, SIOCGIFFLAGS, &r));
	CHECK(r.ifr_flags & IFF_UP, "the bridge is down");
	MUST(ioctl(fd, SIOCGIFADDR, &r));
	a = v4("10.9.0.1", 0);
	SAME("address", ((struct sockaddr_in *)&r.ifr_addr)->sin_addr.s_addr, a.sin_addr.s_addr);
	MUST(ioctl(fd, SIOCGIFMTU, &r));
	SAME("mtu", r.ifr_mtu, 1400);
	MUST(ioctl(fd, SIOCGIFINDEX, &r));
	SAME("index", r.ifr_ifindex, index);
	MUST(ioctl(fd, SIOCGIFHWADDR, &r));
	CHECK(!memcmp(own, r.ifr_hwaddr.sa_data, 6), "another hardware address");
	read_from("/proc/net/route", text, sizeof(text));
	/* to 10.99.0.0 via 10.9.0.2; the metric of this old call is one more than the kernel's */
	CHECK(strstr(text, "br7\t0000630A\t0200090A\t0003\t0\t0\t7\t0000FFFF"), "the route is gone:\n%s", text);
	memset(&arp, 0, sizeof(arp));
	CHECK(!neighbour(SIOCGARP, &arp), "the neighbour is gone: %s", strerror(errno));
	CHECK(!memcmp(arp.arp_ha.sa_data, mac, 6) && arp.arp_flags & ATF_PERM, "another neighbour");
	is_set("/proc/sys/net/ipv4/conf/br7/rp_filter", "2");
	is_set("/proc/sys/net/ipv4/ip_local_port_range", "20000\t30001");
	is_set("/proc/sys/net/ipv4/conf/all/forwarding", "1");
	can_be_reached(on_lo, "127.0.0.1", 7007);
	can_be_reached(on_bridge, "10.9.0.1", 7008);
	guest_pass();
}
