/* Rings of packet sockets that two tasks have mapped: both see what comes, and what is put there is sent. And a socket of the old type. */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

#define PROTOCOL 0x88b6
#define FRAMES 8
#define FRAME 2048
#define RING (FRAMES * FRAME)

static char *rings;
static int lo;

static struct tpacket2_hdr *frame(int ring, int i)
{
	return (void *)(rings + ring * RING + i * FRAME);
}

/* Sends a frame of our protocol with this text. */
static void say(const char *text)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL), .sll_ifindex = lo, .sll_halen = 6 };
	char b[64] = { [12] = PROTOCOL >> 8, [13] = PROTOCOL & 0xff };
	int s = MUST(socket(AF_PACKET, SOCK_RAW, 0));

	strcpy(b + 14, text);
	MUST(sendto(s, b, sizeof(b), 0, (void *)&a, sizeof(a)));
	close(s);
}

/* Whether one of the frames received has this text. */
static int seen(const char *text)
{
	for (int i = 0; i < FRAMES; i++) {
		struct tpacket2_hdr *h = frame(0, i);

		if (__atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER &&
		    !strcmp((char *)h + h->tp_mac + 14, text))
			return 1;
	}
	return 0;
}

/* The same, in the other task. */
static int seen_by(int *pair, const char *text)
{
	char answer;

	MUST(write(pair[0], text, strlen(text) + 1));
	SAME("answer", MUST(read(pair[0], &answer, 1)), 1);
	return answer;
}

int main(int argc, char **argv)
{
	struct tpacket_req ring = { RING, 1, FRAME, FRAMES };
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL) };
	struct sockaddr named = { .sa_family = AF_PACKET, .sa_data = "lo" };
	socklen_t len = sizeof(named);
	struct ifreq up = { .ifr_name = "lo" };
	int s, old, pair[2];
	char b[64];

	guest_init(argc, argv);
	lo = a.sll_ifindex = if_nametoindex("lo");
	CHECK(lo > 0, "no loopback device");
	old = MUST(socket(AF_PACKET, SOCK_PACKET, htons(PROTOCOL)));
	up.ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING;
	MUST(ioctl(old, SIOCSIFFLAGS, &up));
	MUST(bind(old, &named, sizeof(named)));
	s = MUST(socket(AF_PACKET, SOCK_RAW, 0));
	MUST(setsockopt(s, SOL_PACKET, PACKET_VERSION, &(int){ TPACKET_V2 }, sizeof(int)));
	MUST(setsockopt(s, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)));
	MUST(setsockopt(s, SOL_PACKET, PACKET_TX_RING, &ring, sizeof(ring)));
	MUST(bind(s, (void *)&a, sizeof(a)));
	rings = mmap(NULL, 2 * RING, PROT_READ | PROT_WRITE, MAP_SHARED, s, 0);
	CHECK(rings != MAP_FAILED, "mmap: %m");
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	if (!MUST(fork())) {
		close(pair[0]);
		while (read(pair[1], b, sizeof(b)) > 0)
			MUST(write(pair[1], &(char){ seen(b) }, 1));
		_exit(0);
	}
	close(pair[1]);
	guest_ready_wait();

	if (SPOIL("mapping"))
		MUST(mmap(rings, 2 * RING, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED);
	say("by sendto");
	CHECK(seen("by sendto"), "the ring shows no frame");
	CHECK(seen_by(pair, "by sendto"), "the ring of the other task shows no frame");
	/* through the ring, from the frame the kernel looks at first */
	for (int i = 0; i < FRAMES; i++) {
		struct tpacket2_hdr *h = frame(1, i);
		char *data = (char *)h + TPACKET2_HDRLEN - sizeof(struct sockaddr_ll);

		memset(data, 0, 64);
		data[12] = PROTOCOL >> 8;
		data[13] = PROTOCOL & 0xff;
		sprintf(data + 14, "by ring %d", i);
		h->tp_len = 64;
		__atomic_store_n(&h->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
	}
	MUST(send(s, NULL, 0, 0));
	if (SPOIL("old"))
		old = dup2(MUST(socket(AF_PACKET, SOCK_PACKET, 0)), old);
	memset(&named, 0, sizeof(named));
	MUST(getsockname(old, &named, &len));
	SAME("family", named.sa_family, AF_PACKET);
	CHECK(!strcmp(named.sa_data, "lo"), "bound to %s", named.sa_data);
	SAME("received", recv(old, b, sizeof(b), 0), 64);
	CHECK(!strcmp(b + 14, "by sendto"), "received %s", b + 14);
	for (int i = 0; i < FRAMES; i++) {
		char want[16];

		sprintf(want, "by ring %d", i);
		SAME("received", recv(old, b, sizeof(b), 0), 64);
		CHECK(!strcmp(b + 14, want), "received %s", b + 14);
	}
	guest_pass();
}
