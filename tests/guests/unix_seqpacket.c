/* Seqpacket sockets: borders of messages, an empty one, a listener with an abstract name, an end that is closed. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int p[2], l, c, s, half[2];
	static char big[100000], back[100001];
	socklen_t len;
	char buf[32];

	guest_init(argc, argv);
	len = offsetof(struct sockaddr_un, sun_path) + 1 + snprintf(a.sun_path + 1, 90, "%s-seq", guest_dir);
	guest_fill(big, sizeof(big), 5);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p));
	SAME("sent", send(p[0], "a", 1, 0), 1);
	SAME("sent", send(p[0], "bcd", 3, 0), 3);
	SAME("sent", send(p[0], "", 0, 0), 0);
	SAME("sent", send(p[0], big, sizeof(big), 0), sizeof(big));
	SAME("sent", send(p[0], "end", 3, 0), 3);
	l = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	MUST(bind(l, (void *)&a, len));
	MUST(listen(l, 1));
	c = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
	MUST(connect(c, (void *)&a, len));
	s = MUST(accept(l, NULL, NULL));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, half));
	SAME("sent", send(half[0], "last", 4, 0), 4);
	SAME("sent", send(half[0], "words", 5, 0), 5);
	close(half[0]);
	guest_ready_wait();

	if (SPOIL("border"))
		MUST(recv(p[1], buf, 1, 0));
	SAME("first", recv(p[1], buf, sizeof(buf), 0), 1);
	SAME("second", recv(p[1], buf, sizeof(buf), 0), 3);
	SAME("third", recv(p[1], buf, sizeof(buf), 0), 0);
	SAME("fourth", recv(p[1], back, sizeof(back), 0), SPOIL("big") ? 1 : sizeof(big));
	CHECK(guest_filled(back, sizeof(big), 5), "bytes of a large message changed");
	SAME("fifth", recv(p[1], buf, sizeof(buf), 0), 3);
	CHECK(recv(p[1], buf, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "one more is in the queue");
	SAME("sent", send(s, "hello", 5, 0), 5);
	SAME("received", recv(c, buf, sizeof(buf), 0), SPOIL("accepted") ? 4 : 5);
	SAME("last", recv(half[1], buf, sizeof(buf), 0), SPOIL("half") ? 3 : 4);
	SAME("words", recv(half[1], buf, sizeof(buf), 0), 5);
	SAME("end", recv(half[1], buf, sizeof(buf), 0), 0);
	CHECK(send(half[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "a closed peer takes data");
	guest_pass();
}
