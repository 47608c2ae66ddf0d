/* TCP connections with both ends in the tree: data both ways, a full queue that was partly never sent, one end in a child. */
#include "net.h"

#define UP 100000
#define DOWN 50000

static int listener, client, server, full, drain, kid_end, our_end;
static size_t stuffed;

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	net_recv("in the child", kid_end, 1000, 5);
	net_send(kid_end, 2000, 6);
}

/* Fills the connection until nothing more goes in. */
static void stuff(void)
{
	char *mem = malloc(1 << 22);
	ssize_t n;

	guest_fill(mem, 1 << 22, 9);
	while (stuffed < 1 << 22 && (n = send(full, mem + stuffed, (1 << 22) - stuffed, MSG_DONTWAIT)) > 0)
		stuffed += n;
	free(mem);
}

int main(int argc, char **argv)
{
	struct tcp_info was, now;
	socklen_t n = sizeof(was);
	int unsent, small = 8192;
	char *mem;
	pid_t kid;

	guest_init(argc, argv);
	net_up();
	listener = net_listen(AF_INET, 6001, 8);
	net_pair(listener, AF_INET, &client, &server);
	net_send(client, UP, 1);
	net_send(server, DOWN, 2);
	net_set(client, IPPROTO_TCP, TCP_NODELAY, 1);
	net_set(listener, SOL_SOCKET, SO_RCVBUF, small);
	net_pair(listener, AF_INET, &full, &drain);
	stuff();
	MUST(ioctl(full, 0x894b, &unsent));
	CHECK(unsent > 0, "everything was sent at once");
	net_pair(listener, AF_INET, &our_end, &kid_end);
	net_send(our_end, 1000, 5);
	MUST(getsockopt(client, IPPROTO_TCP, TCP_INFO, &was, &n));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	n = sizeof(now);
	MUST(getsockopt(client, IPPROTO_TCP, TCP_INFO, &now, &n));
	if (SPOIL("read"))
		CHECK(recv(server, &unsent, 4, 0) == 4, "recv");
	if (SPOIL("options"))
		now.tcpi_options ^= 1;
	if (SPOIL("nodelay"))
		net_set(client, IPPROTO_TCP, TCP_NODELAY, 0);
	SAME("state", now.tcpi_state, TCP_ESTABLISHED);
	SAME("options", now.tcpi_options & 7, was.tcpi_options & 7);
	SAME("window scale", now.tcpi_snd_wscale, was.tcpi_snd_wscale);
	SAME("window scale of the other", now.tcpi_rcv_wscale, was.tcpi_rcv_wscale);
	/* the loopback device has larger ones than can be set */
	CHECK(now.tcpi_snd_mss >= was.tcpi_snd_mss || now.tcpi_snd_mss > 32000, "segments are %u, not %u",
	      now.tcpi_snd_mss, was.tcpi_snd_mss);
	SAME("nodelay", net_int(client, IPPROTO_TCP, TCP_NODELAY), 1);
	net_recv("up", server, UP, 1);
	net_recv("down", client, DOWN, 2);
	net_send(client, 3000, 3);
	net_recv("up again", server, 3000, 3);
	net_send(server, 4000, 4);
	net_recv("down again", client, 4000, 4);
	mem = malloc(stuffed);
	for (size_t at = 0; at < stuffed;) {
		struct pollfd p = { .fd = drain, .events = POLLIN };
		ssize_t k;

		CHECK(poll(&p, 1, 8000) == 1, "the full one: nothing comes after %zu of %zu bytes", at, stuffed);
		k = recv(drain, mem + at, stuffed - at, 0);
		CHECK(k > 0, "the full one: recv after %zu of %zu bytes: %s", at, stuffed, strerror(errno));
		at += k;
	}
	CHECK(guest_filled(mem, stuffed & ~3UL, 9), "the full one: other bytes than were sent");
	guest_child_finish(kid);
	net_recv("from the child", our_end, 2000, 6);
	close(kid_end);
	CHECK(recv(our_end, &unsent, 4, 0) == 0, "no end after the child's");
	close(server);
	CHECK(recv(client, &unsent, 4, 0) == 0, "no end");
	net_pair(listener, AF_INET, &client, &server);
	guest_pass();
}
