/*
 * Tasks below the root with mount, UTS, IPC and network namespaces of their own, and one below those with a mount namespace more:
 * its mounts are peers of the others'. Files, sockets and System V objects there, some of them open in the root.
 */
#include "mounts.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PORT 7777
static const char *const sorts[] = { "mnt", "net", "uts", "ipc" };

static ino_t space(const char *whose, const char *sort)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%s/ns/%s", whose, sort);
	MUST(stat(path, &st));
	return st.st_ino;
}

static void tmpfs_with(const char *name, const char *text)
{
	const char *at = guest_path(name);
	char path[64];

	mkdir(at, 0700);
	MUST(mount("nested", at, "tmpfs", 0, "size=64k"));
	snprintf(path, sizeof(path), "%s/text", name);
	put(guest_path(path), text);
}

static unsigned loopback(int set)
{
	int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
	struct ifreq r = {};

	strcpy(r.ifr_name, "lo");
	MUST(ioctl(fd, SIOCGIFFLAGS, &r));
	if (set) {
		r.ifr_flags |= IFF_UP;
		MUST(ioctl(fd, SIOCSIFFLAGS, &r));
	}
	close(fd);
	return r.ifr_flags;
}

static struct sockaddr_in address(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return a;
}

static void connects(int family, void *a, socklen_t len)
{
	int fd = MUST(socket(family, SOCK_STREAM, 0));

	MUST(connect(fd, a, len));
	close(fd);
}

static const struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "\0nested" };
#define NAME_LEN (offsetof(struct sockaddr_un, sun_path) + 7)

static void inner(void *arg)
{
	ino_t outers = space("self", "mnt"), net = space("self", "net"), own;
	int fd;

	(void)arg;
	MUST(unshare(CLONE_NEWNS));
	own = space("self", "mnt");
	CHECK(own != outers, "no new mount namespace");
	tmpfs_with("m", "inner\n");
	fd = MUST(open(guest_path("m/text"), O_RDONLY));
	MUST(lseek(fd, 3, SEEK_SET));
	guest_child_ready_wait();

	(void)net;
	reads("the innermost file", fd, "er\n");
	fd = MUST(open(guest_path("m/text"), O_RDONLY));
	reads("the innermost file again", fd, "inner\n");
	fd = open(guest_path("n/x/late"), O_RDONLY);
	CHECK(fd >= 0, "what is mounted in a peer is not seen");
	reads("the late file", fd, "late\n");
	/* the same network and memory as the one above */
	loopback(0);
	CHECK(guest_filled(arg, 2 * PAGE, 5), "the innermost memory changed");
}

static void outer(void *arg)
{
	struct sockaddr_in a = address();
	char host[65] = "";
	int fd, shm, sem, tcp, abstract;
	pid_t child;
	void *at;

	(void)arg;
	/* CRIU knows several namespaces of two sorts only: parameter 1 for the comparison */
	MUST(unshare(CLONE_NEWNS | CLONE_NEWNET | (guest_arg(0, 0) ? 0 : CLONE_NEWUTS | CLONE_NEWIPC)));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	if (!guest_arg(0, 0))
		MUST(sethostname("nested-host", 11));
	tmpfs_with("n", "outer\n");
	MUST(mkdir(guest_path("n/x"), 0700));
	MUST(mount(NULL, guest_path("n"), NULL, MS_SHARED, NULL));
	fd = MUST(open(guest_path("n/text"), O_RDWR));
	MUST(lseek(fd, 2, SEEK_SET));
	loopback(1);
	tcp = MUST(socket(AF_INET, SOCK_STREAM, 0));
	MUST(bind(tcp, (void *)&a, sizeof(a)));
	MUST(listen(tcp, 5));
	abstract = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(abstract, (const void *)&name, NAME_LEN));
	MUST(listen(abstract, 5));
	sem = MUST(semget(0x99, 2, IPC_CREAT | IPC_EXCL | 0600));
	MUST(semctl(sem, 1, SETVAL, 42));
	shm = MUST(shmget(0x98, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
	at = shmat(shm, NULL, 0);
	CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
	guest_fill(at, 2 * PAGE, 5);
	child = guest_child(inner, at);
	guest_child_ready_wait();

	if (SPOIL("host"))
		MUST(sethostname("other", 5));
	MUST(gethostname(host, sizeof(host) - 1));
	CHECK(guest_arg(0, 0) || !strcmp(host, "nested-host"), "host name is %s", host);
	if (SPOIL("position"))
		lseek(fd, 0, SEEK_SET);
	reads("the outer file", fd, "ter\n");
	CHECK(access(guest_path("m/text"), F_OK) < 0, "the inner mount is seen outside");
	if (SPOIL("semaphore"))
		MUST(semctl(sem, 1, SETVAL, 1));
	SAME("semaphore set", semget(0x99, 0, 0), sem);
	SAME("semaphore", semctl(sem, 1, GETVAL), 42);
	SAME("segment", shmget(0x98, 0, 0), shm);
	if (SPOIL("memory"))
		*(char *)at ^= 1;
	CHECK(guest_filled(at, 2 * PAGE, 5), "memory changed");
	CHECK(loopback(0) & IFF_UP, "the loopback device is down");
	if (SPOIL("listen"))
		shutdown(tcp, SHUT_RDWR);
	connects(AF_INET, &a, sizeof(a));
	if (SPOIL("abstract"))
		shutdown(abstract, SHUT_RDWR);
	connects(AF_UNIX, (void *)&name, NAME_LEN);
	if (SPOIL("peer"))
		MUST(mount(NULL, guest_path("n"), NULL, MS_PRIVATE, NULL));
	MUST(mount("late", guest_path("n/x"), "tmpfs", 0, NULL));
	put(guest_path("n/x/late"), "late\n");
	guest_child_finish(child);
}

int main(int argc, char **argv)
{
	char who[32], path[64], before[65] = "", after[65] = "";
	int fd, net;
	struct stat st;
	unsigned i;
	pid_t child;

	guest_init(argc, argv);
	MUST(gethostname(before, sizeof(before) - 1));
	mkdir(guest_path("n"), 0700);
	child = guest_child(outer, NULL);
	snprintf(who, sizeof(who), "%d", child);
	snprintf(path, sizeof(path), "/proc/%s/ns/net", who);
	net = MUST(open(path, O_RDONLY));
	snprintf(path, sizeof(path), "/proc/%s/root", who);
	fd = MUST(open(path, O_PATH | O_DIRECTORY));
	i = MUST(openat(fd, guest_path("n/text") + 1, O_RDONLY));
	close(fd);
	fd = i;

	guest_ready_wait();

	for (i = 0; i < 4; i++)
		CHECK((i > 1 && guest_arg(0, 0)) || space("self", sorts[i]) != space(who, sorts[i]), "the %s namespaces are one", sorts[i]);
	MUST(fstat(net, &st));
	if (SPOIL("handle"))
		MUST(stat("/proc/self/ns/net", &st));
	SAME("network behind the handle", st.st_ino, space(who, "net"));
	if (SPOIL("inside"))
		MUST(lseek(fd, 1, SEEK_SET));
	reads("the file of the other namespace", fd, "outer\n");
	CHECK(access(guest_path("n/text"), F_OK) < 0, "a mount of the other namespace is seen");
	MUST(gethostname(after, sizeof(after) - 1));
	CHECK(!strcmp(before, after), "host name is %s", after);
	guest_child_finish(child);
	guest_pass();
}
