/* Pairs made by socketpair(2): of all types, shared with a child, and who is told to be the peer. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static int shared[2];

static int peer_pid(int fd)
{
	struct ucred c = { 0 };
	socklen_t len = sizeof(c);

	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &len));
	return c.pid;
}

static void talk(const char *what, int a, int b)
{
	char buf[16];

	SAME(what, send(a, "ping", 4, 0), 4);
	SAME(what, recv(b, buf, sizeof(buf), 0), 4);
	CHECK(!memcmp(buf, "ping", 4), "%s: other bytes", what);
	SAME(what, send(b, "pong!", 5, 0), 5);
	SAME(what, recv(a, buf, sizeof(buf), 0), 5);
}

static void child(UNUSED void *arg)
{
	char buf[8];

	close(shared[0]);
	guest_child_ready_wait();
	SAME("from the parent", recv(shared[1], buf, sizeof(buf), 0), 3);
	SAME("to the parent", send(shared[1], "kid", 3, 0), 3);
}

int main(int argc, char **argv)
{
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
	int p[3][2], i, val, own;
	socklen_t len = sizeof(val);
	struct sockaddr_un a;
	char buf[8];
	pid_t kid;

	guest_init(argc, argv);
	own = getpid();
	for (i = 0; i < 3; i++)
		MUST(socketpair(AF_UNIX, types[i] | (i == 1 ? SOCK_NONBLOCK : SOCK_CLOEXEC), 0, p[i]));
	val = 70000;
	MUST(setsockopt(p[0][0], SOL_SOCKET, SO_SNDBUF, &val, sizeof(val)));
	val = 7;
	MUST(setsockopt(p[0][1], SOL_SOCKET, SO_RCVLOWAT, &val, sizeof(val)));
	MUST(setsockopt(p[2][0], SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, shared));
	kid = guest_child(child, NULL);
	close(shared[1]);
	guest_ready_wait();

	SAME("SO_SNDBUF", (getsockopt(p[0][0], SOL_SOCKET, SO_SNDBUF, &val, &len), val), SPOIL("sndbuf") ? 1 : 140000);
	SAME("SO_RCVLOWAT", (getsockopt(p[0][1], SOL_SOCKET, SO_RCVLOWAT, &val, &len), val), SPOIL("lowat") ? 1 : 7);
	SAME("SO_PASSCRED", (getsockopt(p[2][0], SOL_SOCKET, SO_PASSCRED, &val, &len), val), SPOIL("passcred") ? 0 : 1);
	MUST(setsockopt(p[0][1], SOL_SOCKET, SO_RCVLOWAT, &(int){ 1 }, sizeof(int)));
	MUST(setsockopt(p[2][0], SOL_SOCKET, SO_PASSCRED, &(int){ 0 }, sizeof(int)));
	for (i = 0; i < 3; i++) {
		SAME("type", (getsockopt(p[i][0], SOL_SOCKET, SO_TYPE, &val, &len), val), types[i]);
		len = sizeof(a);
		MUST(getsockname(p[i][0], (void *)&a, &len));
		SAME("length of the name", len, sizeof(sa_family_t));
		len = sizeof(val);
		SAME("flags", fcntl(p[i][1], F_GETFL), O_RDWR | (i == 1 ? O_NONBLOCK : 0));
		SAME("close-on-exec", fcntl(p[i][1], F_GETFD), i == 1 ? 0 : FD_CLOEXEC);
		SAME("pid of the peer", peer_pid(p[i][0]), SPOIL("peer") ? 1 : own);
		if (SPOIL("content"))
			MUST(send(p[i][1], "x", 1, 0));
		CHECK(recv(p[i][0], buf, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "something is in an empty queue");
		talk("a pair", p[i][0], p[i][1]);
	}
	if (SPOIL("shared"))
		close(shared[0]);
	SAME("to the child", send(shared[0], "own", 3, MSG_NOSIGNAL), 3);
	guest_child_finish(kid);
	SAME("from the child", recv(shared[0], buf, sizeof(buf), 0), 3);
	guest_pass();
}
