/* Out-of-band bytes in unix streams: in the middle of a queue, at its head, at its end, with SO_OOBINLINE, beside files and credentials, and
 * with an owner who must not be told of it again. */
#include "guest.h"
#include "oob.h"
#include <linux/sockios.h>
#include <sys/socket.h>
#include <sys/un.h>

static volatile sig_atomic_t told;

static void urgent(UNUSED int sig)
{
	told++;
}

static void says(int fd, const char *text, int flags)
{
	SAME(text, send(fd, text, strlen(text), flags), strlen(text));
}

/* What the next call to receive gives. */
static void hears(const char *what, int fd, const char *text, int flags)
{
	char b[32] = "";
	ssize_t n = recv(fd, b, sizeof(b) - 1, flags | MSG_DONTWAIT);

	CHECK(n == (ssize_t)strlen(text) && !strcmp(b, text), "%s: got %zd: \"%s\", not \"%s\"", what, n, b, text);
}

static int mark(int fd)
{
	int v = -1;

	MUST(ioctl(fd, SIOCATMARK, &v));
	return v;
}

static void pair(int *p)
{
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p));
}

int main(int argc, char **argv)
{
	int middle[2], head[2], end[2], in[2], cred[2], pfd[2], one = 1;
	char control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec iov = { "with", 4 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	struct pollfd p = { .events = POLLPRI };
	struct sigaction act = { .sa_handler = urgent };

	guest_init(argc, argv);
	MUST(sigaction(SIGURG, &act, NULL));
	pair(middle);
	says(middle[0], "before", 0);
	if (!oob_works())
		guest_skip("no out-of-band bytes in unix sockets that work (Linux 6.11)");
	says(middle[0], "x!", MSG_OOB);
	says(middle[0], "behind", 0);
	pair(head);
	MUST(fcntl(head[1], F_SETOWN, getpid()));
	says(head[0], "?", MSG_OOB);
	says(head[0], "rest", 0);
	SAME("signals", told, 1);
	pair(end);
	says(end[0], "all", 0);
	says(end[0], ".", MSG_OOB);
	pair(in);
	MUST(setsockopt(in[1], SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)));
	says(in[0], "a", 0);
	says(in[0], "b", MSG_OOB);
	says(in[0], "c", 0);
	pair(cred);
	MUST(pipe(pfd));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &pfd[1], sizeof(int));
	SAME("sent", sendmsg(cred[0], &m, 0), 4);
	says(cred[0], "#", MSG_OOB);
	says(cred[0], "last", 0);
	guest_ready_wait();

	SAME("signals", told, 1);
	if (SPOIL("taken"))
		recv(middle[1], &one, 1, MSG_OOB);
	if (SPOIL("replaced"))
		says(middle[0], "+", MSG_OOB);
	p.fd = middle[1];
	SAME("poll", poll(&p, 1, 0), 1);
	hears("before it", middle[1], "beforex", 0);
	SAME("mark", mark(middle[1]), 1);
	hears("the byte", middle[1], "!", MSG_OOB);
	hears("behind it", middle[1], "behind", 0);
	SAME("mark at the head", mark(head[1]), SPOIL("mark") ? 0 : 1);
	hears("at the head", head[1], "?", MSG_OOB);
	hears("behind the head", head[1], "rest", 0);
	hears("before the end", end[1], "all", 0);
	hears("the end", end[1], ".", MSG_OOB);
	hears("before, inline", in[1], "a", 0);
	SAME("mark inline", mark(in[1]), 1);
	hears("inline", in[1], SPOIL("inline") ? "b" : "bc", 0);
	memset(control, 0, sizeof(control));
	iov = (struct iovec){ (char[8]){ 0 }, 8 };
	SAME("with a file", recvmsg(cred[1], &m, MSG_DONTWAIT), 4);
	c = CMSG_FIRSTHDR(&m);
	CHECK(c && c->cmsg_type == SCM_RIGHTS, "no file came");
	hears("behind the file", cred[1], "#", MSG_OOB);
	hears("the last", cred[1], "last", 0);
	SAME("signals in the end", told, SPOIL("signals") ? 2 : 1);
	for (int i = 0; i < 2; i++) {
		says(head[0], "!", MSG_OOB);
		hears("a new one", head[1], "!", MSG_OOB);
	}
	SAME("signals of new ones", told, 3);
	guest_pass();
}
