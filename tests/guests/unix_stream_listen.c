/* A listening socket with a path: an accepted connection with its names, one that waits to be accepted, and new ones. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un at(const char *name, socklen_t *len)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", guest_path(name));
	*len = offsetof(struct sockaddr_un, sun_path) + strlen(a.sun_path) + 1;
	return a;
}

static void named(const char *what, int fd, int peer, const char *name)
{
	struct sockaddr_un a = { 0 };
	socklen_t len = sizeof(a);

	MUST(peer ? getpeername(fd, (void *)&a, &len) : getsockname(fd, (void *)&a, &len));
	if (!name)
		SAME(what, len, sizeof(sa_family_t));
	else
		CHECK(!strcmp(a.sun_path, guest_path(name)), "%s is %s", what, a.sun_path);
}

int main(int argc, char **argv)
{
	struct sockaddr_un a, b;
	socklen_t la, lb;
	int l, c[3], s[3], val;
	char buf[16];
	struct stat st;

	guest_init(argc, argv);
	a = at("server", &la);
	b = at("client", &lb);
	l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, la));
	MUST(chmod(a.sun_path, 0640));
	MUST(listen(l, 5));
	for (int i = 0; i < 3; i++) {
		c[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
		if (i == 1)
			MUST(bind(c[i], (void *)&b, lb));
		MUST(connect(c[i], (void *)&a, la));
		if (i < 2)
			s[i] = MUST(accept(l, NULL, NULL));
	}
	SAME("sent", send(c[0], "early", 5, 0), 5);
	guest_ready_wait();

	lb = sizeof(val);
	MUST(getsockopt(l, SOL_SOCKET, SO_ACCEPTCONN, &val, &lb));
	SAME("listening", val, 1);
	MUST(stat(a.sun_path, &st));
	SAME("permissions", st.st_mode, S_IFSOCK | (SPOIL("mode") ? 0600 : 0640));
	named("own name of the accepted", s[0], 0, "server");
	named("peer's name of the accepted", s[0], 1, NULL);
	named("peer's name of the client", c[0], 1, SPOIL("name") ? "other" : "server");
	named("own name of the client", c[1], 0, "client");
	named("peer's name of the second", s[1], 1, "client");
	SAME("received", recv(s[0], buf, sizeof(buf), 0), SPOIL("queue") ? 4 : 5);
	for (int i = 0; i < 2; i++) {
		SAME("sent", send(s[i], "a", 1, 0), 1);
		SAME("received", recv(c[i], buf, 1, 0), 1);
	}
	/* the one that waits */
	if (SPOIL("waiting"))
		MUST(dup2(s[0], l));
	MUST(fcntl(l, F_SETFL, O_NONBLOCK));
	s[2] = MUST(accept(l, NULL, NULL));
	SAME("sent", send(c[2], "late", 4, 0), 4);
	SAME("received", recv(s[2], buf, sizeof(buf), 0), 4);
	CHECK(accept(l, NULL, NULL) == -1 && errno == EAGAIN, "one connection too many waits");
	/* and a new one */
	c[0] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	if (SPOIL("new"))
		unlink(a.sun_path);
	MUST(connect(c[0], (void *)&a, la));
	MUST(accept(l, NULL, NULL));
	guest_pass();
}
