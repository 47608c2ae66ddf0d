/* A group of listening sockets on one port (SO_REUSEPORT), in two processes, with a connection of each. */
#include "net.h"

enum { N = 4 };

static int group[N];

static int member(void)
{
	union address a;
	socklen_t n = net_addr(&a, AF_INET, 1, 6100);
	int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));

	net_set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	MUST(bind(fd, &a.sa, n));
	MUST(listen(fd, 16));
	return fd;
}

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	for (int i = 0; i < N; i++)
		SAME("reuseport in the child", net_int(group[i], SOL_SOCKET, SO_REUSEPORT), 1);
}

/* Makes connections until every member of the group was given one. */
static void all_are_asked(void)
{
	int got[N] = { 0 }, asked = 0;
	union address a;
	socklen_t n = net_addr(&a, AF_INET, 1, 6100);

	for (int i = 0; i < 400 && asked < N; i++) {
		int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
		struct pollfd p[N];

		MUST(connect(c, &a.sa, n));
		for (int k = 0; k < N; k++)
			p[k] = (struct pollfd){ group[k], POLLIN, 0 };
		MUST(poll(p, N, 2000));
		for (int k = 0; k < N; k++)
			if (p[k].revents & POLLIN) {
				close(MUST(accept(group[k], NULL, NULL)));
				asked += !got[k]++;
			}
		close(c);
	}
	SAME("members of the group that get connections", asked, N);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	net_up();
	for (int i = 0; i < N; i++)
		group[i] = member();
	all_are_asked();
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("one is gone"))
		shutdown(group[2], SHUT_RD);
	if (SPOIL("alone"))
		net_set(group[1], SOL_SOCKET, SO_REUSEPORT, 0);
	all_are_asked();
	for (int i = 0; i < N; i++)
		SAME("reuseport", net_int(group[i], SOL_SOCKET, SO_REUSEPORT), 1);
	close(member());
	guest_child_finish(kid);
	guest_pass();
}
