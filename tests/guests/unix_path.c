/* Names that are relative paths, bound in a folder that is no longer the working directory, and names under another root. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static int bound(const char *path, int type)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = MUST(socket(AF_UNIX, type, 0));

	strcpy(a.sun_path, path);
	MUST(bind(s, (void *)&a, sizeof(a)));
	return s;
}

static void named(int fd, const char *name)
{
	struct sockaddr_un a = { 0 };
	socklen_t len = sizeof(a);

	MUST(getsockname(fd, (void *)&a, &len));
	CHECK(!strcmp(a.sun_path, name), "the name is %s, not %s", a.sun_path, name);
}

static void reached(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	MUST(connect(c, (void *)&a, sizeof(a)));
	close(c);
}

static void jailed(UNUSED void *arg)
{
	int l;

	MUST(chroot(guest_path("jail")));
	MUST(chdir("/"));
	l = bound("/in", SOCK_STREAM);
	MUST(listen(l, 2));
	guest_child_ready_wait();
	named(l, "/in");
	reached("/in");
}

int main(int argc, char **argv)
{
	char here[PATH_MAX];
	int rel, deep;
	pid_t kid;

	guest_init(argc, argv);
	MUST(mkdir(guest_path("jail"), 0700));
	MUST(mkdir(guest_path("sub"), 0700));
	MUST(getcwd(here, sizeof(here)) ? 0 : -1);
	MUST(chdir(guest_path("sub")));
	rel = bound("rel", SOCK_STREAM);
	MUST(listen(rel, 3));
	MUST(chdir(guest_path("")));
	deep = bound("./sub/deep", SOCK_DGRAM);
	MUST(chdir(here));
	kid = guest_child(jailed, NULL);
	guest_ready_wait();

	named(rel, SPOIL("rel") ? "sub/rel" : "rel");
	named(deep, "./sub/deep");
	if (SPOIL("reached"))
		unlink(guest_path("sub/rel"));
	reached(guest_path("sub/rel"));
	guest_child_finish(kid);
	guest_pass();
}
