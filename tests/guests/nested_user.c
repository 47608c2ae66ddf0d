/*
 * User namespaces below that of the root: one with its own names, network and IPC objects and a thread, one with maps of several
 * lines whose task is somebody else, one that maps nobody, and one in another that nobody is in. What their tasks are there, and
 * what the root sees of them.
 */
#include "guest.h"
#include <grp.h>
#include <net/if.h>
#include <sys/sem.h>
#include <sys/socket.h>

#define NS_GET_USERNS _IO(0xb7, 1)
#define NS_GET_PARENT _IO(0xb7, 2)
#define NS_GET_OWNER_UID _IO(0xb7, 4)

static ino_t inode(int fd)
{
	struct stat st;

	MUST(fstat(fd, &st));
	return st.st_ino;
}

static int space(pid_t whose, const char *sort)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", whose, sort);
	return MUST(open(path, O_RDONLY | O_CLOEXEC));
}

static void put(pid_t whose, const char *name, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", whose, name);
	fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	SAME(name, write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void maps_itself(const char *users, const char *groups)
{
	put(getpid(), "setgroups", "deny");
	put(getpid(), "uid_map", users);
	put(getpid(), "gid_map", groups);
}

/* Who a task is, and the maps it lives with: lines of /proc. */
struct who {
	char text[4096];
};

static struct who who(pid_t whose)
{
	static const char *const lines[] = { "Uid:", "Gid:", "Groups:", "NoNewPrivs:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:" };
	static const char *const files[] = { "uid_map", "gid_map", "setgroups" };
	struct who w = { "" };
	char path[64], *line, *end;
	size_t n = 0;
	unsigned i;

	for (i = 0; i < 12; i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", whose, i < 9 ? "status" : files[i - 9]);
		line = (char *)guest_slurp(path);
		if (i < 9) {
			line = strstr(line, lines[i]);
			CHECK(line, "no %s", lines[i]);
			end = strchr(line, '\n');
			CHECK(end, "no end of %s", lines[i]);
			end[1] = 0;
		}
		n += snprintf(w.text + n, sizeof(w.text) - n, "%s", line);
		CHECK(n < sizeof(w.text), "more than expected");
	}
	return w;
}

static void same(const char *name, struct who is, struct who was)
{
	CHECK(!strcmp(is.text, was.text), "%s is\n%snot\n%s", name, is.text, was.text);
}

static void owned(const char *sort)
{
	int fd = space(getpid(), sort), own = space(getpid(), "user"), owner = MUST(ioctl(fd, NS_GET_USERNS));

	SAME(sort, inode(owner), inode(own));
	close(fd);
	close(own);
	close(owner);
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

static void *thread(void *arg)
{
	volatile pid_t *tid = arg;

	tid[0] = syscall(SYS_gettid);
	while (!tid[1])
		usleep(1000);
	tid[2] = getuid() == 0 && syscall(SYS_gettid) == tid[0] ? 1 : 2;
	return NULL;
}

static void mapped(UNUSED void *arg)
{
	volatile pid_t tid[3] = { 0 };
	char host[65] = "";
	struct who was;
	pthread_t th[2];
	int sem;

	MUST(unshare(CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWIPC));
	maps_itself("0 0 1\n", "0 0 1\n");
	MUST(sethostname("nested-user", 11));
	loopback(1);
	sem = MUST(semget(0x97, 1, IPC_CREAT | IPC_EXCL | 0600));
	MUST(semctl(sem, 0, SETVAL, 21));
	CHECK(!pthread_create(&th[0], NULL, thread, (void *)tid), "pthread_create");
	while (!tid[0])
		usleep(1000);
	MUST(prctl(PR_CAPBSET_DROP, 22 /* CAP_SYS_BOOT */, 0, 0, 0));
	was = who(getpid());
	guest_child_ready_wait();

	if (SPOIL("bounding"))
		MUST(prctl(PR_CAPBSET_DROP, 1, 0, 0, 0));
	same("the first", who(getpid()), was);
	MUST(gethostname(host, sizeof(host) - 1));
	if (SPOIL("host"))
		host[0] = 'x';
	CHECK(!strcmp(host, "nested-user"), "host name is %s", host);
	SAME("whether lo is up", !!(loopback(0) & IFF_UP), !SPOIL("loopback"));
	SAME("semaphore", semctl(semget(0x97, 0, 0), 0, GETVAL), SPOIL("semaphore") ? 22 : 21);
	if (SPOIL("owner"))
		MUST(unshare(CLONE_NEWUSER));
	owned("net");
	owned("uts");
	owned("ipc");
	MUST(sethostname("still", 5));
	tid[1] = 1;
	pthread_join(th[0], NULL);
	if (SPOIL("thread"))
		tid[2] = 2;
	SAME("the thread", tid[2], 1);
}

/* The root writes the maps of this one. */
static void many(void *arg)
{
	gid_t groups[] = { 5, 1003 };
	int *pipes = arg, self = getpid();
	struct who was;
	char c;

	MUST(unshare(CLONE_NEWUSER));
	MUST(write(pipes[1], &self, sizeof(self)));
	SAME("go", read(pipes[2], &c, 1), 1);
	MUST(setgroups(2, groups));
	MUST(setresgid(1002, 1002, 1003));
	MUST(setresuid(1005, 1005, 1004));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
	was = who(getpid());
	SAME("user of the second", getuid(), 1005);
	guest_child_ready_wait();

	if (SPOIL("user"))
		MUST(setresuid(1004, 1004, 1004));
	same("the second", who(getpid()), was);
}

static void unmapped(UNUSED void *arg)
{
	struct who was;

	MUST(unshare(CLONE_NEWUSER));
	was = who(getpid());
	SAME("user of the third", getuid(), 65534);
	guest_child_ready_wait();

	if (SPOIL("mapped"))
		maps_itself("0 0 1\n", "0 0 1\n");
	same("the third", who(getpid()), was);
}

static void deep(UNUSED void *arg)
{
	struct who was;
	pid_t child;

	MUST(unshare(CLONE_NEWUSER));
	maps_itself("3 0 1\n", "3 0 1\n");
	MUST(unshare(CLONE_NEWUSER));
	maps_itself("7 3 1\n", "8 3 1\n");
	child = guest_child(guest_idle, NULL);
	was = who(getpid());
	SAME("user of the deepest", getuid(), 7);
	SAME("its group", getgid(), 8);
	guest_child_ready_wait();

	same("the deepest", who(getpid()), was);
	same("its child", who(child), was);
	guest_child_finish(child);
}

int main(int argc, char **argv)
{
	struct who seen[4];
	int pipes[4], i, below, above, owner, own;
	uid_t uid = 99;
	pid_t child[4];

	guest_init(argc, argv);
	child[0] = guest_child(mapped, NULL);
	MUST(pipe(pipes));
	MUST(pipe(pipes + 2));
	i = MUST(fork());
	if (!i) {
		/* maps for the second, while its parent waits for it to be ready */
		int task;

		SAME("asked", read(pipes[0], &task, sizeof(task)), sizeof(task));
		put(task, "uid_map", "0 0 100\n1000 5000 10\n");
		put(task, "gid_map", "0 0 50\n1002 6000 5\n");
		MUST(write(pipes[3], "g", 1));
		_exit(0);
	}
	child[1] = guest_child(many, pipes);
	SAME("the mapper", waitpid(i, NULL, 0), i);
	child[2] = guest_child(unmapped, NULL);
	child[3] = guest_child(deep, NULL);
	for (i = 0; i < 4; i++) {
		close(pipes[i]);
		seen[i] = who(child[i]);
	}
	guest_ready_wait();

	for (i = 0; i < 4; i++) {
		same("one of them, from above,", who(child[i]), seen[i]);
		below = space(child[i], "user");
		above = MUST(ioctl(below, NS_GET_PARENT));
		MUST(ioctl(below, NS_GET_OWNER_UID, &uid));
		SAME("owner", uid, SPOIL("maker") ? 1 : 0);
		if (i == 3) {
			owner = above;
			above = MUST(ioctl(above, NS_GET_PARENT));
			CHECK(inode(owner) != inode(above), "nothing is between the deepest and the root");
			close(owner);
		}
		own = space(getpid(), "user");
		CHECK(inode(own) != inode(below), "no user namespace of its own");
		SAME("the one above", inode(above), inode(own));
		close(own);
		close(above);
		close(below);
	}
	for (i = 0; i < 4; i++)
		guest_child_finish(child[i]);
	guest_pass();
}
