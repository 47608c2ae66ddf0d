/*
 * What only a plugin can carry: an open /dev/fuse, a connection to a server outside of the tree, and, where the machine
 * lets them be made, a mapping of /dev/mem, a mount and a network device that the plugin claims.
 */
#include "guest.h"
#include <net/if.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#define BIOS 0xf0000

static struct sockaddr_un name;

/* A server that answers every byte with the next one, on any number of connections. It is no descendant of the root. */
static void serve(int listening)
{
	struct pollfd all[16] = { { .fd = listening, .events = POLLIN } };
	int n = 1;
	char c;

	for (;;) {
		poll(all, n, -1);
		if (all[0].revents && n < 16) {
			all[n].fd = accept(listening, NULL, NULL);
			all[n++].events = POLLIN;
		}
		for (int i = 1; i < n; i++)
			if (all[i].revents & POLLIN && read(all[i].fd, &c, 1) == 1) {
				c++;
				if (write(all[i].fd, &c, 1) != 1)
					_exit(1);
			} else if (all[i].revents) {
				close(all[i].fd);
				all[i--] = all[--n];
			}
	}
}

static void start_server(void)
{
	int l = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	pid_t kid;

	name.sun_family = AF_UNIX;
	snprintf(name.sun_path, sizeof(name.sun_path), "%s", guest_path("server"));
	MUST(bind(l, (void *)&name, sizeof(name)));
	MUST(listen(l, 4));
	kid = MUST(fork());
	if (!kid) {
		if (fork())
			_exit(0);
		setsid();
		serve(l);
	}
	MUST(waitpid(kid, NULL, 0));
	close(l);
}

static void answers(int s, char c)
{
	char got = 0;

	CHECK(write(s, &c, 1) == 1, "the server cannot be written to: %s", strerror(errno));
	CHECK(read(s, &got, 1) == 1, "the server does not answer: %s", strerror(errno));
	SAME("answer", got, c + 1);
}

/* A mount and a device in namespaces of our own; `ip` makes the device. */
static int surroundings(void)
{
	MUST(unshare(CLONE_NEWNS | CLONE_NEWNET));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mkdir(guest_path("claimed"), 0755));
	MUST(mkdir(guest_path("outside"), 0755));
	fclose(fopen(guest_path("outside/brought"), "w"));
	MUST(mount("claimed", guest_path("claimed"), "tmpfs", 0, NULL));
	fclose(fopen(guest_path("claimed/lost"), "w"));
	return !system("ip link add claimed0 type dummy 2>/dev/null");
}

int main(int argc, char **argv)
{
	struct stat st;
	int fuse, mem, s, linked;
	char before[PAGE], b;
	volatile char *map = MAP_FAILED;

	guest_init(argc, argv);
	start_server();
	fuse = open("/dev/fuse", O_RDWR | O_NONBLOCK);
	if (fuse < 0)
		guest_skip("/dev/fuse cannot be opened");
	mem = open("/dev/mem", O_RDONLY);
	if (mem >= 0) {
		map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, mem, BIOS);
		close(mem);
		if (map != MAP_FAILED)
			memcpy(before, (void *)map, PAGE);
	}
	linked = surroundings();
	s = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(s, (void *)&name, sizeof(name)));
	answers(s, 'a');
	/* a connection that is gone is to be said, not to be died of */
	signal(SIGPIPE, SIG_IGN);
	guest_ready_wait();
	if (SPOIL("device"))
		dup2(open("/dev/null", O_RDWR), fuse);
	MUST(fstat(fuse, &st));
	CHECK(S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 229), "it is no /dev/fuse any more");
	SAME("flags", fcntl(fuse, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK);
	CHECK(read(fuse, &b, 1) == -1 && errno == EPERM, "it is connected: %s", strerror(errno));
	if (SPOIL("connection"))
		shutdown(s, SHUT_RDWR);
	answers(s, 'x');
	if (map != MAP_FAILED)
		CHECK(!memcmp((void *)map, before, PAGE), "memory of the device is another");
	/* alone nothing was brought: what was lost is there */
	CHECK(!access(guest_path("claimed/brought"), F_OK) != !access(guest_path("claimed/lost"), F_OK),
	      "the claimed mount is neither of both");
	if (SPOIL("link"))
		linked = !!system("ip link del claimed0 2>/dev/null") + 1;
	if (linked)
		CHECK(if_nametoindex("claimed0"), "the claimed device is gone");
	guest_pass();
}
