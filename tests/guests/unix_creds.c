/* Credentials: beside messages in a queue (as numbers, or as a pidfd), and of the peer of a connection: also of a sender that has ended. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

/* linux/socket.h, since 6.5 */
#define SO_PASSPIDFD_ 76
#define SCM_PIDFD_ 4

static int dg[2], by_fd[2], last;

static void child(UNUSED void *arg)
{
	SAME("sent", send(dg[0], "child", 5, 0), 5);
	SAME("sent", send(by_fd[0], "child", 5, 0), 5);
	guest_child_ready_wait();
}

static void comes(const char *text, int pid, int uid)
{
	union {
		char buf[CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} c;
	char buf[16] = "";
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	struct ucred u;

	MUST(recvmsg(dg[1], &m, MSG_DONTWAIT));
	CHECK(!strcmp(buf, text), "%s arrived, not %s", buf, text);
	CHECK(CMSG_FIRSTHDR(&m) && CMSG_FIRSTHDR(&m)->cmsg_type == SCM_CREDENTIALS, "%s has no credentials", text);
	memcpy(&u, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(u));
	SAME("pid of the sender", u.pid, pid);
	SAME("uid of the sender", u.uid, uid);
}

/* the sender is told by a pidfd alone */
static void comes_by_fd(int pid)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c;
	char buf[16] = "", line[256];
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf) };
	int fd, told = 0;
	FILE *f;

	MUST(recvmsg(by_fd[1], &m, MSG_DONTWAIT));
	CHECK(CMSG_FIRSTHDR(&m) && CMSG_FIRSTHDR(&m)->cmsg_type == SCM_PIDFD_, "the message has no pidfd");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", fd);
	f = fopen(line, "r");
	CHECK(f, "no %s", line);
	while (fgets(line, sizeof(line), f))
		sscanf(line, "Pid: %d", &told);
	fclose(f);
	close(fd);
	SAME("process of the pidfd", told, pid);
}

static void peer(const char *what, int fd, int pid, int uid)
{
	struct ucred c = { 0 };
	socklen_t len = sizeof(c);

	MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &len));
	SAME(what, c.pid, pid);
	SAME(what, c.uid, uid);
}

int main(int argc, char **argv)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int l, c, s, status, uid = 4711;
	socklen_t len;
	pid_t kid, gone;
	int has_pidfd;

	guest_init(argc, argv);
	len = offsetof(struct sockaddr_un, sun_path) + 1 + snprintf(a.sun_path + 1, 90, "%s-cred", guest_dir);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, dg));
	MUST(setsockopt(dg[1], SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)));
	SAME("sent", send(dg[0], "root", 4, 0), 4);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, by_fd));
	has_pidfd = !setsockopt(by_fd[1], SOL_SOCKET, SO_PASSPIDFD_, &(int){ 1 }, sizeof(int));
	if (SPOIL("pidfd") && !has_pidfd)
		guest_skip("messages bring no pidfds (Linux 6.5)");
	kid = guest_child(child, NULL);
	l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, len));
	MUST(listen(l, 5));
	c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	last = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	gone = MUST(fork());
	if (!gone) {
		MUST(setresuid(uid, uid, uid));
		SAME("sent", send(dg[0], "gone", 4, 0), 4);
		MUST(connect(c, (void *)&a, len));
		_exit(0);
	}
	MUST(waitpid(gone, &status, 0));
	SAME("status", status, 0);
	s = MUST(accept(l, NULL, NULL));
	guest_ready_wait();

	comes("root", getpid(), SPOIL("uid") ? 1 : 0);
	comes("child", SPOIL("pid") ? getpid() : kid, 0);
	comes("gone", gone, uid);
	if (has_pidfd)
		comes_by_fd(SPOIL("pidfd") ? getpid() : kid);
	peer("peer of the accepted", s, SPOIL("peer") ? getpid() : gone, uid);
	peer("peer of the client", c, getpid(), 0);
	guest_child_finish(kid);
	guest_pass();
}
