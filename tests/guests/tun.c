/* tun and tap devices: one that lives as long as its file, one with two queues of which one is switched off, one that stays without files,
 * and a file that is attached to none. */
#include "net.h"
#include <linux/if_tun.h>

static int ctl;

static int attach(const char *name, int flags)
{
	struct ifreq r = { .ifr_flags = flags };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		guest_skip("no /dev/net/tun");
	strcpy(r.ifr_name, name);
	MUST(ioctl(fd, TUNSETIFF, &r));
	return fd;
}

static int told(int fd, const char *name)
{
	struct ifreq r = { 0 };

	MUST(ioctl(fd, TUNGETIFF, &r));
	CHECK(!strcmp(r.ifr_name, name), "device %s, not %s", r.ifr_name, name);
	return r.ifr_flags & (IFF_TUN | IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR | IFF_PERSIST | IFF_DETACH_QUEUE);
}

static int index_of(const char *name)
{
	struct ifreq r = { 0 };

	strcpy(r.ifr_name, name);
	return ioctl(ctl, SIOCGIFINDEX, &r) ? -errno : r.ifr_ifindex;
}

static void up(const char *name, const char *address)
{
	struct ifreq r = { 0 };
	struct sockaddr_in a = { .sin_family = AF_INET };

	strcpy(r.ifr_name, name);
	MUST(inet_pton(AF_INET, address, &a.sin_addr) == 1 ? 0 : -1);
	memcpy(&r.ifr_addr, &a, sizeof(a));
	MUST(ioctl(ctl, SIOCSIFADDR, &r));
	MUST(inet_pton(AF_INET, "255.255.255.0", &a.sin_addr) == 1 ? 0 : -1);
	memcpy(&r.ifr_netmask, &a, sizeof(a));
	MUST(ioctl(ctl, SIOCSIFNETMASK, &r));
	MUST(ioctl(ctl, SIOCGIFFLAGS, &r));
	r.ifr_flags |= IFF_UP;
	MUST(ioctl(ctl, SIOCSIFFLAGS, &r));
}

/* A UDP packet goes out through the device, and one comes in. */
static void carries(int fd, int sock)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9) };
	unsigned char p[256], swap[4];
	char b[8] = "";
	struct pollfd w = { .fd = fd, .events = POLLIN };
	int n;

	MUST(inet_pton(AF_INET, "10.44.0.2", &to.sin_addr) == 1 ? 0 : -1);
	CHECK(sendto(sock, "out", 3, 0, (void *)&to, sizeof(to)) == 3, "sendto: %s", strerror(errno));
	do {
		CHECK(poll(&w, 1, 2000) == 1, "no packet comes out of the device");
		n = MUST(read(fd, p, sizeof(p)));
	} while (n < 31 || p[0] != 0x45 || p[9] != IPPROTO_UDP);
	CHECK(!memcmp(p + 28, "out", 3), "other bytes came out");
	/* back to where it came from: addresses and ports change places, the sums stay right */
	memcpy(swap, p + 12, 4);
	memmove(p + 12, p + 16, 4);
	memcpy(p + 16, swap, 4);
	memcpy(swap, p + 20, 2);
	memmove(p + 20, p + 22, 2);
	memcpy(p + 22, swap, 2);
	CHECK(write(fd, p, n) == n, "write: %s", strerror(errno));
	w.fd = sock;
	CHECK(poll(&w, 1, 2000) == 1 && recv(sock, b, sizeof(b), 0) == 3 && !strcmp(b, "out"), "nothing comes in");
}

int main(int argc, char **argv)
{
	int tun, tap[2], none, stays, sock, hdr = 12, room = 300000, v, index;
	struct ifreq r = { 0 };

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNET);
	net_up();
	ctl = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	tun = attach("tun7", IFF_TUN | IFF_NO_PI);
	up("tun7", "10.44.0.1");
	for (int i = 0; i < 2; i++)
		tap[i] = attach("tap7", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR);
	MUST(ioctl(tap[0], TUNSETVNETHDRSZ, &hdr));
	MUST(ioctl(tap[0], TUNSETSNDBUF, &room));
	r.ifr_flags = IFF_DETACH_QUEUE;
	MUST(ioctl(tap[1], TUNSETQUEUE, &r));
	stays = attach("tap8", IFF_TAP);
	MUST(ioctl(stays, TUNSETPERSIST, 1));
	MUST(ioctl(stays, TUNSETOWNER, 4711));
	close(stays);
	none = MUST(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
	sock = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	carries(tun, sock);
	index = index_of("tap8");
	guest_ready_wait();
	if (SPOIL("queue")) {
		r.ifr_flags = IFF_ATTACH_QUEUE;
		ioctl(tap[1], TUNSETQUEUE, &r);
	}
	if (SPOIL("header")) {
		v = 10;
		ioctl(tap[0], TUNSETVNETHDRSZ, &v);
	}
	if (SPOIL("device"))
		dup2(none, tun);
	SAME("flags of tun7", told(tun, "tun7"), IFF_TUN);
	SAME("flags of tap7", told(tap[0], "tap7"), IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR);
	SAME("flags of its other queue", told(tap[1], "tap7"), IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR | IFF_DETACH_QUEUE);
	MUST(ioctl(tap[0], TUNGETVNETHDRSZ, &v));
	SAME("length of headers", v, hdr);
	MUST(ioctl(tap[0], TUNGETSNDBUF, &v));
	SAME("room to send", v, room);
	SAME("flags of the file", fcntl(tun, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	CHECK(ioctl(none, TUNGETIFF, &r) < 0 && errno == EBADFD, "a file without device has one");
	carries(tun, sock);
	SAME("number of tap8", index_of("tap8"), index);
	stays = attach("tap8", IFF_TAP);
	CHECK(told(stays, "tap8") & IFF_PERSIST, "tap8 does not stay any more");
	close(stays);
	SAME("number of tap8", index_of("tap8"), index);
	close(tun);
	SAME("tun7 without a file", index_of("tun7"), -ENODEV);
	guest_pass();
}
