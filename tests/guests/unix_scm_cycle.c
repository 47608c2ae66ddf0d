/* Sockets in flight: in each other's queues, in their own, and a chain that only the last of which is open. */
#include "guest.h"
#include <sys/socket.h>

static void give(int sock, char text, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c = { 0 };
	struct iovec iov = { &text, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };

	CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
	CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
	CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd, sizeof(int));
	MUST(sendmsg(sock, &m, 0));
}

static int take(int sock, char *text)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c;
	struct iovec iov = { text, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	int fd;

	MUST(recvmsg(sock, &m, MSG_DONTWAIT));
	CHECK(CMSG_FIRSTHDR(&m), "a message without its file");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

int main(int argc, char **argv)
{
	int a[2], b[2], c[2], d[2], fd, next;
	char text;

	guest_init(argc, argv);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, a));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, b));
	/* a[1] in b's queue and b[1] in a's, and a's receiver in its own queue */
	give(a[0], '1', b[1]);
	give(b[0], '2', a[1]);
	give(a[0], '3', a[1]);
	/* a chain: c travels in d; c holds one more pair's end; nobody has them open */
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, c));
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, d));
	fd = MUST(open("/dev/null", O_RDWR));
	give(c[0], '5', fd);
	close(fd);
	give(d[0], '4', c[1]);
	give(d[0], '6', c[0]);
	close(c[0]);
	close(c[1]);
	guest_ready_wait();

	fd = take(a[1], &text);
	SAME("first", text, SPOIL("first") ? 0 : '1');
	/* it is b[1] */
	next = take(fd, &text);
	SAME("through the first", text, '2');
	if (SPOIL("second"))
		next = fd;
	SAME("sent", send(a[0], "x", 1, 0), 1);
	SAME("the last but one", take(next, &text) >= 0, 1);
	SAME("its text", text, '3');
	SAME("received", recv(next, &text, 1, MSG_DONTWAIT), 1);
	SAME("text", text, 'x');
	fd = take(d[1], &text);
	SAME("chain", text, '4');
	next = take(fd, &text);
	SAME("end of the chain", text, SPOIL("chain") ? '4' : '5');
	SAME("written", write(next, "z", 1), 1);
	next = take(d[1], &text);
	SAME("its other end", text, '6');
	SAME("sent", send(next, "q", 1, 0), 1);
	SAME("received", recv(fd, &text, 1, MSG_DONTWAIT), 1);
	guest_pass();
}
