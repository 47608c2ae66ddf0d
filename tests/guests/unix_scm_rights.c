/* Files in flight: one that is open besides, one that is open nowhere else, a pipe with contents, borders in a stream. */
#include "guest.h"
#include <sys/socket.h>

static void give(int sock, const char *text, const int *fds, int n)
{
	union {
		char buf[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} c = { 0 };
	struct iovec iov = { (void *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n) {
		m.msg_control = c.buf;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		CMSG_FIRSTHDR(&m)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&m)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&m)->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), fds, n * sizeof(int));
	}
	SAME(text, sendmsg(sock, &m, 0), strlen(text));
}

static int take(int sock, char *text, size_t room, int *fds)
{
	union {
		char buf[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} c;
	struct iovec iov = { text, room };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	struct cmsghdr *h;
	int n = 0;

	memset(text, 0, room);
	MUST(recvmsg(sock, &m, MSG_DONTWAIT));
	h = CMSG_FIRSTHDR(&m);
	if (h) {
		n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(h), n * sizeof(int));
	}
	return n;
}

int main(int argc, char **argv)
{
	int dg[2], st[2], p[2], file, only, fds[8], n;
	struct stat a, b;
	char buf[32];

	guest_init(argc, argv);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dg));
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, st));
	file = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0600));
	only = MUST(open(guest_path("only"), O_RDWR | O_CREAT | O_APPEND, 0600));
	SAME("written", write(only, "inside", 6), 6);
	MUST(pipe(p));
	SAME("written", write(p[1], "piped", 5), 5);
	give(dg[0], "both", (int[]){ file, only }, 2);
	give(dg[0], "none", NULL, 0);
	give(dg[0], "pipe", (int[]){ p[0], p[1] }, 2);
	close(only);
	close(p[0]);
	close(p[1]);
	MUST(lseek(file, 3, SEEK_SET));
	give(st[0], "with", &file, 1);
	give(st[0], "after", NULL, 0);
	guest_ready_wait();

	n = take(dg[1], buf, sizeof(buf), fds);
	SAME("files in the first message", n, SPOIL("count") ? 1 : 2);
	CHECK(!strcmp(buf, "both"), "the first message is %s", buf);
	MUST(lseek(file, 7, SEEK_SET));
	if (SPOIL("shared"))
		fds[0] = MUST(open(guest_path("file"), O_RDWR));
	SAME("position of the same open file", lseek(fds[0], 0, SEEK_CUR), 7);
	MUST(fstat(fds[1], &a));
	MUST(stat(guest_path("only"), &b));
	SAME("inode", a.st_ino, SPOIL("only") ? 1 : b.st_ino);
	SAME("position", lseek(fds[1], 0, SEEK_CUR), 6);
	SAME("flags", fcntl(fds[1], F_GETFL) & (O_APPEND | O_ACCMODE), O_RDWR | O_APPEND);
	SAME("files in the second message", take(dg[1], buf, sizeof(buf), fds), 0);
	SAME("files in the third message", take(dg[1], buf, sizeof(buf), fds), 2);
	SAME("read", read(fds[0], buf, sizeof(buf)), SPOIL("pipe") ? 4 : 5);
	SAME("written", write(fds[1], "x", 1), 1);
	SAME("read", read(fds[0], buf, sizeof(buf)), 1);
	/* a stream: what was written after the file comes without it */
	SAME("files with the first bytes", take(st[1], buf, sizeof(buf), fds), SPOIL("border") ? 0 : 1);
	CHECK(!strcmp(buf, "with"), "the bytes with the file are %s", buf);
	SAME("position of the same open file", lseek(fds[0], 0, SEEK_CUR), 7);
	SAME("files with the last bytes", take(st[1], buf, sizeof(buf), fds), 0);
	CHECK(!strcmp(buf, "after"), "the last bytes are %s", buf);
	guest_pass();
}
