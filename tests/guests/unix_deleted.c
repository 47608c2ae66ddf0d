/* Names that were deleted: of a listener that still has its connections, and one that another socket has taken since. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static int bound(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

	strcpy(a.sun_path, path);
	MUST(bind(s, (void *)&a, sizeof(a)));
	MUST(listen(s, 4));
	return s;
}

static int joined(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

	strcpy(a.sun_path, path);
	return connect(s, (void *)&a, sizeof(a)) ? -1 : s;
}

static void named(int fd, int peer, const char *name)
{
	struct sockaddr_un a = { 0 };
	socklen_t len = sizeof(a);

	MUST(peer ? getpeername(fd, (void *)&a, &len) : getsockname(fd, (void *)&a, &len));
	CHECK(!strcmp(a.sun_path, name), "the name is %s, not %s", a.sun_path, name);
}

int main(int argc, char **argv)
{
	char path[100], away[100], buf[8];
	int old, young, c, s, alone, t, u;

	guest_init(argc, argv);
	snprintf(path, sizeof(path), "%s", guest_path("sock"));
	MUST(mkdir(guest_path("dir"), 0700));
	snprintf(away, sizeof(away), "%s", guest_path("dir/sock"));
	old = bound(path);
	c = joined(path);
	s = MUST(accept(old, NULL, NULL));
	MUST(unlink(path));
	young = bound(path);
	/* listener and folder are gone, the connection lives */
	alone = bound(away);
	t = joined(away);
	u = MUST(accept(alone, NULL, NULL));
	close(alone);
	MUST(unlink(away));
	MUST(rmdir(guest_path("dir")));
	SAME("sent", send(t, "left", 4, 0), 4);
	guest_ready_wait();

	named(old, 0, path);
	named(c, 1, SPOIL("name") ? away : path);
	named(s, 0, path);
	named(t, 1, away);
	named(u, 0, away);
	CHECK(access(guest_path("dir"), F_OK), "the folder is there again");
	SAME("sent", send(c, "x", 1, 0), 1);
	SAME("received", recv(s, buf, 1, 0), 1);
	SAME("received", recv(u, buf, sizeof(buf), 0), SPOIL("queue") ? 3 : 4);
	SAME("sent", send(u, "y", 1, 0), 1);
	SAME("received", recv(t, buf, 1, 0), 1);
	/* new connections go to the young one */
	MUST(joined(path));
	MUST(fcntl(old, F_SETFL, O_NONBLOCK));
	MUST(fcntl(young, F_SETFL, O_NONBLOCK));
	CHECK(accept(SPOIL("young") ? young : old, NULL, NULL) == -1, "the old one is reached");
	MUST(accept(young, NULL, NULL));
	CHECK(joined(away) == -1 && errno == ENOENT, "the deleted name is reached");
	guest_pass();
}
