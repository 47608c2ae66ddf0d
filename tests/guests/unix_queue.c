/* What waits in a stream: much of it, in both directions, with a peek offset of the program's own. */
#include "guest.h"
#include <sys/socket.h>

#define MUCH 60000
#ifndef SO_PEEK_OFF
#define SO_PEEK_OFF 42
#endif

int main(int argc, char **argv)
{
	static char data[MUCH], back[MUCH];
	int p[2], q[2], val = 3, queued;
	socklen_t len = sizeof(val);
	char buf[16];

	guest_init(argc, argv);
	guest_fill(data, MUCH, 77);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	MUST(fcntl(p[0], F_SETFL, O_NONBLOCK));
	for (int at = 0; at < MUCH; at += 1000)
		SAME("sent", send(p[0], data + at, 1000, 0), 1000);
	SAME("sent", send(p[1], "other way", 9, 0), 9);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, q));
	SAME("sent", send(q[0], "0123456789", 10, 0), 10);
	MUST(setsockopt(q[1], SOL_SOCKET, SO_PEEK_OFF, &val, sizeof(val)));
	SAME("peeked", recv(q[1], buf, 2, MSG_PEEK), 2);
	guest_ready_wait();

	MUST(ioctl(p[1], FIONREAD, &queued));
	SAME("queued", queued, SPOIL("queued") ? 1 : MUCH);
	SAME("received", recv(p[1], back, MUCH, MSG_WAITALL), MUCH);
	if (SPOIL("content"))
		back[MUCH / 2]++;
	CHECK(!memcmp(data, back, MUCH), "contents of the stream changed");
	CHECK(recv(p[1], back, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "the stream holds more than before");
	SAME("other way", recv(p[0], back, 100, 0), SPOIL("back") ? 8 : 9);
	MUST(getsockopt(q[1], SOL_SOCKET, SO_PEEK_OFF, &val, &len));
	SAME("peek offset", val, SPOIL("offset") ? 0 : 5);
	SAME("peeked", recv(q[1], buf, 3, MSG_PEEK), 3);
	CHECK(!memcmp(buf, "567", 3), "another place was peeked at");
	SAME("all", recv(q[1], buf, sizeof(buf), 0), 10);
	guest_pass();
}
