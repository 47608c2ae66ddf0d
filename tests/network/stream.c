/*
 * Numbered data in both directions, for the proof that connections survive.
 *
 *   stream serve ADDRESS PORT FOLDER       sends back whatever comes, on any number of connections; makes FOLDER/ready
 *   stream send ADDRESS PORT N FOLDER      opens N connections and sends numbers 0, 1, 2, ... on each until FOLDER/stop is there,
 *                                          then waits for all of them to come back; each must be the one that is due
 *   stream watch DEVICE FOLDER             counts TCP packets with RST on the device until FOLDER/watched is there
 *
 * The last line of output is "OK ..." or "FAIL ...".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1100, ROOM = 1 << 16 };

static void __attribute__((noreturn)) fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("FAIL ");
	vprintf(fmt, ap);
	printf("\n");
	exit(1);
}

static int exists(const char *folder, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return !access(path, F_OK);
}

static void make(const char *folder, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	close(open(path, O_WRONLY | O_CREAT, 0666));
}

static socklen_t address(struct sockaddr_storage *a, const char *ip, const char *port)
{
	struct sockaddr_in *four = (void *)a;
	struct sockaddr_in6 *six = (void *)a;

	memset(a, 0, sizeof(*a));
	if (inet_pton(AF_INET, ip, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(atoi(port));
		return sizeof(*four);
	}
	if (inet_pton(AF_INET6, ip, &six->sin6_addr) != 1)
		fail("%s is no address", ip);
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(atoi(port));
	return sizeof(*six);
}

static struct pollfd fds[MOST];

struct held {
	size_t from, to;
	char bytes[ROOM];
};

static int serve(char **arg)
{
	static struct held *of[MOST];
	struct sockaddr_storage a;
	socklen_t n = address(&a, arg[0], arg[1]);
	int l = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, count = 1;

	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(l, (void *)&a, n) || listen(l, 512))
		fail("bind: %s", strerror(errno));
	fds[0] = (struct pollfd){ l, POLLIN, 0 };
	make(arg[2], "ready");
	for (;;) {
		if (poll(fds, count, -1) < 0 && errno != EINTR)
			fail("poll: %s", strerror(errno));
		if (fds[0].revents & POLLIN && count < MOST) {
			fds[count] = (struct pollfd){ accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), POLLIN, 0 };
			of[count++] = calloc(1, sizeof(struct held));
		}
		for (int i = 1; i < count; i++) {
			struct held *h = of[i];
			ssize_t k;

			if (fds[i].revents & (POLLIN | POLLERR | POLLHUP) && h->to < ROOM) {
				k = read(fds[i].fd, h->bytes + h->to, ROOM - h->to);
				if (k == 0 || (k < 0 && errno != EAGAIN && errno != EINTR)) {
					if (k < 0)
						printf("FAIL connection %d: %s\n", i, strerror(errno)), fflush(stdout);
					close(fds[i].fd);
					fds[i].fd = -1;
					continue;
				}
				h->to += k > 0 ? k : 0;
			}
			if (h->from < h->to) {
				k = write(fds[i].fd, h->bytes + h->from, h->to - h->from);
				h->from += k > 0 ? k : 0;
			}
			if (h->from == h->to)
				h->from = h->to = 0;
			fds[i].events = (h->to < ROOM ? POLLIN : 0) | (h->from < h->to ? POLLOUT : 0);
		}
	}
}

static int send_all(char **arg)
{
	/* numbers sent and received, and what is left of one that was cut */
	static uint64_t out[MOST], in[MOST];
	static unsigned char part[MOST][8];
	static int out_cut[MOST], in_cut[MOST];
	struct sockaddr_storage a;
	socklen_t n = address(&a, arg[0], arg[1]);
	int count = atoi(arg[2]), stop = 0;
	uint64_t window = count > 50 ? 2000 : 40000, total = 0;
	time_t deadline = 0;

	for (int i = 0; i < count; i++) {
		int s = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (connect(s, (void *)&a, n))
			fail("connect %d: %s", i, strerror(errno));
		fcntl(s, F_SETFL, O_NONBLOCK);
		fds[i] = (struct pollfd){ s, POLLIN, 0 };
	}
	make(arg[3], "sending");
	for (;;) {
		int waiting = 0;

		stop = stop || exists(arg[3], "stop");
		if (stop && !deadline)
			deadline = time(NULL) + 60;
		for (int i = 0; i < count; i++) {
			int more = !stop && out[i] - in[i] < window;

			fds[i].events = POLLIN | (more || out_cut[i] ? POLLOUT : 0);
			waiting += in[i] < out[i] || out_cut[i] || in_cut[i];
		}
		if (stop && !waiting)
			break;
		if (deadline && time(NULL) > deadline)
			fail("%d of %d connections have not got everything back (the first: %llu of %llu)", waiting, count,
			     (unsigned long long)in[0], (unsigned long long)out[0]);
		poll(fds, count, 100);
		for (int i = 0; i < count; i++) {
			unsigned char buf[8192];
			ssize_t k, len = 0;

			if (fds[i].revents & (POLLIN | POLLERR | POLLHUP)) {
				k = read(fds[i].fd, buf, sizeof(buf));
				if (k == 0 || (k < 0 && errno != EAGAIN))
					fail("connection %d after %llu numbers: %s", i, (unsigned long long)in[i],
					     k ? strerror(errno) : "end");
				for (ssize_t j = 0; j < k; j++) {
					part[i][in_cut[i]++] = buf[j];
					if (in_cut[i] == 8) {
						uint64_t v;

						memcpy(&v, part[i], 8);
						if (v != in[i])
							fail("connection %d: number %llu came, %llu is due", i,
							     (unsigned long long)v, (unsigned long long)in[i]);
						in[i]++;
						in_cut[i] = 0;
					}
				}
			}
			if (!(fds[i].revents & POLLOUT))
				continue;
			/* a number that was cut is finished first, then come whole ones */
			for (uint64_t v = out[i]; len + 8 <= (ssize_t)sizeof(buf) && len < 4096; v++, len += 8)
				memcpy(buf + len, &v, 8);
			if (stop)
				len = 8;
			k = write(fds[i].fd, buf + out_cut[i], len - out_cut[i]);
			if (k < 0 && errno != EAGAIN)
				fail("connection %d, sending: %s", i, strerror(errno));
			if (k > 0) {
				k += out_cut[i];
				out[i] += k / 8;
				out_cut[i] = k % 8;
			}
		}
		usleep(2000);
	}
	for (int i = 0; i < count; i++)
		total += in[i];
	printf("OK %llu numbers on %d connections\n", (unsigned long long)total, count);
	return 0;
}

static int watch(char **arg)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(arg[0]) };
	int s = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL)), room = 64 << 20;
	unsigned long resets = 0, all = 0, seen = 0;
	struct timeval tv = { 0, 100000 };

	setsockopt(s, SOL_SOCKET, 33, &room, sizeof(room));
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (s < 0 || bind(s, (void *)&a, sizeof(a)))
		fail("%s: %s", arg[0], strerror(errno));
	make(arg[1], "watching");
	for (;;) {
		unsigned char p[128];
		ssize_t k = recv(s, p, sizeof(p), 0);
		unsigned char *t = NULL;

		/* also when there is never a moment without packets */
		if ((k < 0 || ++seen % 4096 == 0) && exists(arg[1], "watched"))
			break;
		if (k >= 40 && p[0] >> 4 == 4 && p[9] == IPPROTO_TCP)
			t = p + (p[0] & 15) * 4;
		else if (k >= 60 && p[0] >> 4 == 6 && p[6] == IPPROTO_TCP)
			t = p + 40;
		all += t != NULL;
		resets += t && t[13] & 4;
	}
	if (resets)
		fail("%lu of %lu packets are resets", resets, all);
	printf("OK %lu packets, none of them a reset\n", all);
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 5 && !strcmp(argv[1], "serve"))
		return serve(argv + 2);
	if (argc == 6 && !strcmp(argv[1], "send"))
		return send_all(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "watch"))
		return watch(argv + 2);
	fail("see the first comment of the source");
}
