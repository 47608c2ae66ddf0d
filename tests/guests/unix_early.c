/* What was sent on connections that are not accepted yet: by ends that live, that have shut down, and that are closed; streams, short and
 * long, with an out-of-band byte, and messages with their borders. */
#include "guest.h"
#include "oob.h"
#include <sys/socket.h>
#include <sys/un.h>

#define LONG 100000

static struct sockaddr_un at(const char *name, socklen_t *len)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", guest_path(name));
	*len = offsetof(struct sockaddr_un, sun_path) + strlen(a.sun_path) + 1;
	return a;
}

static int server(int type, const char *name)
{
	socklen_t n;
	struct sockaddr_un a = at(name, &n);
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));

	MUST(bind(fd, (void *)&a, n));
	MUST(listen(fd, 9));
	MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
	return fd;
}

static int client(int type, const char *name)
{
	socklen_t n;
	struct sockaddr_un a = at(name, &n);
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));

	MUST(connect(fd, (void *)&a, n));
	return fd;
}

static void says(int fd, const char *text, int flags)
{
	SAME(text, send(fd, text, strlen(text), flags), strlen(text));
}

static void hears(const char *what, int fd, const char *text, int flags)
{
	char b[32] = "";
	ssize_t n = recv(fd, b, sizeof(b) - 1, flags | MSG_DONTWAIT);

	CHECK(n == (ssize_t)strlen(text) && !strcmp(b, text), "%s: got %zd: \"%s\", not \"%s\"", what, n, b, text);
}

static void by(const char *what, int fd, pid_t pid)
{
	struct ucred c = { 0 };
	socklen_t n = sizeof(c);

	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n));
	SAME(what, c.pid, pid);
}

int main(int argc, char **argv)
{
	int l, m, c[5], q, s, one = 1;
	struct sockaddr_un a;
	struct ucred *u;
	char *mem = malloc(LONG), b[8], control[CMSG_SPACE(sizeof(*u))];
	struct iovec iov = { b, sizeof(b) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	socklen_t n;

	guest_init(argc, argv);
	l = server(SOCK_STREAM, "stream");
	m = server(SOCK_SEQPACKET, "packets");
	for (int i = 0; i < 5; i++)
		c[i] = client(SOCK_STREAM, "stream");
	says(c[0], "early", 0);
	says(c[0], " bird", 0);
	guest_fill(mem, LONG, 7);
	SAME("sent", send(c[1], mem, LONG, 0), LONG);
	close(c[1]);
	says(c[2], "bye", 0);
	MUST(shutdown(c[2], SHUT_WR));
	says(c[3], "in", 0);
	if (!oob_works())
		guest_skip("no out-of-band bytes in unix sockets that work (Linux 6.11)");
	says(c[3], "!", MSG_OOB);
	says(c[3], "out", 0);
	close(c[4]);
	q = client(SOCK_SEQPACKET, "packets");
	says(q, "one", 0);
	says(q, "", 0);
	says(q, "three", 0);
	/* one that has a name and is gone */
	s = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	a = at("named", &n);
	MUST(bind(s, (void *)&a, n));
	a = at("packets", &n);
	MUST(connect(s, (void *)&a, n));
	says(s, "named", 0);
	close(s);
	MUST(unlink(guest_path("named")));
	guest_ready_wait();

	if (SPOIL("more"))
		says(c[0], "!", 0);
	if (SPOIL("lost"))
		close(accept(l, NULL, NULL));
	s = MUST(accept(l, NULL, NULL));
	by("who connected", s, getpid());
	MUST(setsockopt(s, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)));
	SAME("first bytes", recvmsg(s, &h, MSG_DONTWAIT), 8);
	CHECK(!memcmp(b, "early bi", 8), "other first bytes");
	u = (void *)CMSG_DATA(CMSG_FIRSTHDR(&h));
	SAME("sender", u->pid, SPOIL("sender") ? 1 : getpid());
	hears("the rest", s, "rd", 0);
	says(s, "hello", 0);
	hears("answer", c[0], "hello", 0);
	s = MUST(accept(l, NULL, NULL));
	by("who connected and is gone", s, getpid());
	for (size_t got = 0; got < LONG;) {
		ssize_t k = recv(s, mem + got, LONG - got, MSG_DONTWAIT);

		CHECK(k > 0, "the long one ends after %zu bytes", got);
		got += k;
	}
	CHECK(guest_filled(mem, LONG, SPOIL("bytes") ? 8 : 7), "the long one has other bytes");
	SAME("end of the long one", recv(s, b, 1, MSG_DONTWAIT), 0);
	s = MUST(accept(l, NULL, NULL));
	hears("last words", s, "bye", 0);
	SAME("end of them", recv(s, b, 1, MSG_DONTWAIT), 0);
	says(s, "ok", 0);
	hears("answer to them", c[2], "ok", 0);
	s = MUST(accept(l, NULL, NULL));
	hears("before the mark", s, "in", 0);
	hears("the mark", s, "!", MSG_OOB);
	hears("behind the mark", s, "out", 0);
	s = MUST(accept(l, NULL, NULL));
	SAME("nothing was said", recv(s, b, 1, MSG_DONTWAIT), 0);
	CHECK(accept(l, NULL, NULL) == -1 && errno == EAGAIN, "one connection too many waits");
	s = MUST(accept(m, NULL, NULL));
	hears("first message", s, "one", 0);
	hears("empty message", s, "", 0);
	hears("third message", s, SPOIL("message") ? "two" : "three", 0);
	says(q, "four", 0);
	hears("new message", s, "four", 0);
	n = sizeof(a);
	s = MUST(accept(m, (void *)&a, &n));
	CHECK(!strcmp(a.sun_path, guest_path("named")), "the one that is gone has the name %s", a.sun_path);
	hears("its message", s, "named", 0);
	SAME("its end", recv(s, b, 1, MSG_DONTWAIT), 0);
	guest_pass();
}
