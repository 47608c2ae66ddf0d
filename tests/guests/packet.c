/* A packet socket on the loopback device: protocol, filter, memberships, a ring, a fanout group; it sees packets again. */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

#define PROTOCOL 0x88b5

static int make(int type, int ifindex)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL), .sll_ifindex = ifindex };
	int s = MUST(socket(AF_PACKET, type, 0));

	MUST(bind(s, (void *)&a, sizeof(a)));
	return s;
}

static int get(int s, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	MUST(getsockopt(s, SOL_PACKET, name, &v, &len));
	return v;
}

/* Whether a device of this network namespace has the multicast address (netdevice(7), /proc/net/dev_mcast). */
static int listens(const char *address)
{
	char line[256];
	int found = 0;
	FILE *f = fopen("/proc/self/net/dev_mcast", "r");

	CHECK(f != NULL, "no /proc/self/net/dev_mcast");
	while (fgets(line, sizeof(line), f))
		found |= strstr(line, address) != NULL;
	fclose(f);
	return found;
}

int main(int argc, char **argv)
{
	struct sock_filter pass[] = { { BPF_RET | BPF_K, 0, 0, 100 } };
	struct sock_fprog prog = { 1, pass };
	struct tpacket_req ring = { 4096, 2, 2048, 4 };
	struct packet_mreq mr = {
		.mr_type = PACKET_MR_MULTICAST, .mr_alen = 6, .mr_address = { 1, 0, 0x5e, 0x11, 0x22, 0x33 } };
	struct sockaddr_ll a = { 0 };
	socklen_t len = sizeof(a);
	int lo, see, rings, group, say;
	char frame[200] = { 0 }, buf[300];
	struct ifreq up = { .ifr_name = "lo" };

	guest_init(argc, argv);
	lo = if_nametoindex("lo");
	CHECK(lo > 0, "no loopback device");
	see = make(SOCK_RAW, lo);
	up.ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING;
	MUST(ioctl(see, SIOCSIFFLAGS, &up));
	mr.mr_ifindex = lo;
	MUST(setsockopt(see, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &mr, sizeof(mr)));
	MUST(setsockopt(see, SOL_PACKET, PACKET_AUXDATA, &(int){ 1 }, sizeof(int)));
	MUST(setsockopt(see, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)));
	rings = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
	MUST(setsockopt(rings, SOL_PACKET, PACKET_VERSION, &(int){ TPACKET_V2 }, sizeof(int)));
	MUST(setsockopt(rings, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	group = make(SOCK_RAW, lo);
	MUST(setsockopt(group, SOL_PACKET, PACKET_FANOUT, &(int){ 77 | PACKET_FANOUT_LB << 16 }, sizeof(int)));
	guest_ready_wait();

	MUST(getsockname(see, (void *)&a, &len));
	SAME("protocol", ntohs(a.sll_protocol), SPOIL("protocol") ? 1 : PROTOCOL);
	SAME("device", a.sll_ifindex, lo);
	SAME("PACKET_AUXDATA", get(see, PACKET_AUXDATA), SPOIL("auxdata") ? 0 : 1);
	SAME("PACKET_VERSION", get(rings, PACKET_VERSION), SPOIL("version") ? TPACKET_V1 : TPACKET_V2);
	CHECK(mmap(NULL, SPOIL("ring") ? 1 << 20 : 8192, PROT_READ, MAP_SHARED, rings, 0) != MAP_FAILED, "the ring is gone");
	SAME("PACKET_FANOUT", get(group, PACKET_FANOUT), SPOIL("group") ? 0 : 77 | PACKET_FANOUT_LB << 16);
	if (SPOIL("member"))
		MUST(setsockopt(see, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &mr, sizeof(mr)));
	CHECK(listens("01005e112233"), "the device does not listen to the group");
	MUST(setsockopt(see, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &mr, sizeof(mr)));
	CHECK(!listens("01005e112233"), "the membership is not the socket's");
	/* a frame of its own protocol, cut by the filter */
	frame[12] = PROTOCOL >> 8;
	frame[13] = PROTOCOL & 0xff;
	say = MUST(socket(AF_PACKET, SOCK_RAW, 0));
	a.sll_halen = 6;
	MUST(sendto(say, frame, sizeof(frame), 0, (void *)&a, sizeof(a)));
	if (SPOIL("filter"))
		MUST(setsockopt(see, SOL_SOCKET, SO_DETACH_FILTER, &(int){ 0 }, sizeof(int)));
	if (SPOIL("filter"))
		MUST(recv(see, buf, sizeof(buf), 0));
	if (SPOIL("filter"))
		MUST(sendto(say, frame, sizeof(frame), 0, (void *)&a, sizeof(a)));
	SAME("received", recv(see, buf, sizeof(buf), 0), 100);
	guest_pass();
}
