/* Ends that were shut down or closed, with something left to read, and a reset that is still to be told. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	int wr[2], rd[2], gone[2], reset[2], both[2], dg[2], val;
	socklen_t len = sizeof(val);
	char buf[16];

	guest_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, wr));
	SAME("sent", send(wr[0], "last", 4, 0), 4);
	MUST(shutdown(wr[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, rd));
	MUST(shutdown(rd[0], SHUT_RD));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, gone));
	SAME("sent", send(gone[0], "words", 5, 0), 5);
	close(gone[0]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, reset));
	SAME("sent", send(reset[1], "unread", 6, 0), 6);
	close(reset[0]);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, both));
	MUST(shutdown(both[0], SHUT_RDWR));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dg));
	SAME("sent", send(dg[0], "d", 1, 0), 1);
	close(dg[0]);
	guest_ready_wait();

	SAME("received", recv(wr[1], buf, sizeof(buf), 0), SPOIL("last") ? 3 : 4);
	SAME("end", recv(wr[1], buf, sizeof(buf), 0), 0);
	CHECK(send(wr[0], "x", 1, 0) == -1 && errno == EPIPE, "an end that was shut down sends");
	SAME("sent", send(wr[1], "back", 4, 0), 4);
	SAME("received", recv(wr[0], buf, sizeof(buf), 0), SPOIL("back") ? 3 : 4);
	CHECK(send(rd[1], "x", 1, 0) == -1 && errno == EPIPE, "a deaf end hears");
	SAME("sent", send(rd[0], "ok", 2, 0), 2);
	SAME("received", recv(rd[1], buf, sizeof(buf), 0), 2);
	SAME("received", recv(gone[1], buf, sizeof(buf), 0), SPOIL("gone") ? 4 : 5);
	SAME("end", recv(gone[1], buf, sizeof(buf), 0), 0);
	CHECK(send(gone[1], "x", 1, 0) == -1 && errno == EPIPE, "a closed peer hears");
	if (SPOIL("reset"))
		MUST(getsockopt(reset[1], SOL_SOCKET, SO_ERROR, &val, &len));
	MUST(getsockopt(reset[1], SOL_SOCKET, SO_ERROR, &val, &len));
	SAME("SO_ERROR", val, ECONNRESET);
	MUST(getsockopt(gone[1], SOL_SOCKET, SO_ERROR, &val, &len));
	SAME("SO_ERROR of the other", val, 0);
	SAME("both", recv(both[1], buf, 1, 0), 0);
	CHECK(send(both[1], "x", 1, 0) == -1 && errno == EPIPE, "both ends are shut down");
	SAME("datagram", recv(dg[1], buf, sizeof(buf), 0), SPOIL("datagram") ? 2 : 1);
	CHECK(send(dg[1], "x", 1, 0) == -1 && errno == ECONNREFUSED, "a closed datagram peer hears");
	guest_pass();
}
