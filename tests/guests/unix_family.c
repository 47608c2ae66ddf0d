/* A server and its clients in several processes: they go on talking, and the server takes new ones. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un a = { .sun_family = AF_UNIX };
static int pair[2];

static int joined(void)
{
	int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

	MUST(connect(s, (void *)&a, sizeof(a)));
	return s;
}

static void client(void *arg)
{
	int s = joined(), n = (long)arg;
	char c = 0;

	SAME("sent", send(s, "r", 1, 0), 1);
	SAME("answer", recv(s, &c, 1, 0), 1);
	guest_child_ready_wait();
	if (SPOIL("client"))
		shutdown(s, SHUT_WR);
	c = 'a' + n;
	SAME("sent", send(s, &c, 1, MSG_NOSIGNAL), 1);
	SAME("answer", recv(s, &c, 1, 0), 1);
	SAME("what", c, 'A' + n);
	/* all have the pair */
	SAME("sent", send(pair[1], &c, 1, 0), 1);
	s = joined();
	SAME("sent", send(s, "n", 1, 0), 1);
	SAME("answer", recv(s, &c, 1, 0), 1);
}

static void server(UNUSED void *arg)
{
	struct pollfd p[16] = { { .events = POLLIN } };
	int n = 1;

	p[0].fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(p[0].fd, (void *)&a, sizeof(a)));
	MUST(listen(p[0].fd, 8));
	if (write(guest_sync, "+", 1) != 1)
		_exit(3);
	while (poll(p, n, -1) >= 0 || errno == EINTR) {
		char c;

		if (p[0].revents & POLLIN)
			p[n++] = (struct pollfd){ .fd = MUST(accept(p[0].fd, NULL, NULL)), .events = POLLIN };
		for (int i = 1; i < n; i++) {
			if (!(p[i].revents & (POLLIN | POLLHUP)))
				continue;
			if (recv(p[i].fd, &c, 1, 0) != 1) {
				p[i].fd = -1;
				continue;
			}
			c -= 32;
			MUST(send(p[i].fd, &c, 1, MSG_NOSIGNAL));
		}
	}
	_exit(4);
}

int main(int argc, char **argv)
{
	pid_t srv, kid[3];
	char c;

	guest_init(argc, argv);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", guest_path("s"));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	srv = guest_child(server, NULL);
	for (long i = 0; i < 3; i++)
		kid[i] = guest_child(client, (void *)i);
	guest_ready_wait();
	for (int i = 0; i < 3; i++) {
		guest_child_finish(kid[i]);
		SAME("from the client", recv(pair[0], &c, 1, MSG_DONTWAIT), 1);
		SAME("what", c, SPOIL("pair") ? 'x' : 'A' + i);
	}
	MUST(kill(srv, SIGKILL));
	MUST(waitpid(srv, NULL, 0));
	guest_pass();
}
