/*
 * Pid namespaces that belong to user namespaces below that of the root: one made by a task that is in the user namespace already
 * (unshare --user --pid --fork), one made together with it (as browsers do), with a network. In them sessions, groups, a thread, a
 * further pid namespace, a further user namespace, and a task that nobody but the first process has adopted.
 */
#include "guest.h"

#define NS_GET_USERNS _IO(0xb7, 1)

static int space(const char *sort)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/ns/%s", sort);
	return MUST(open(path, O_RDONLY | O_CLOEXEC));
}

static ino_t inode(int fd)
{
	struct stat st;

	MUST(fstat(fd, &st));
	close(fd);
	return st.st_ino;
}

static void put(const char *name, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
	SAME(name, write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void maps_itself(const char *line)
{
	put("setgroups", "deny");
	put("uid_map", line);
	put("gid_map", line);
}

static void owned(const char *sort)
{
	int fd = space(sort), owner = MUST(ioctl(fd, NS_GET_USERNS));

	SAME(sort, inode(owner), inode(space("user")));
	close(fd);
}

struct numbers {
	pid_t pid, tid, ppid, sid, pgid;
	uid_t uid;
};

static struct numbers numbers(void)
{
	return (struct numbers){ getpid(), syscall(SYS_gettid), getppid(), getsid(0), getpgid(0), getuid() };
}

static void same(const char *who, struct numbers was)
{
	struct numbers is = numbers();

	CHECK(!memcmp(&is, &was, sizeof(is)), "%s: pid %d, thread %d, parent %d, session %d, group %d, user %d; not %d, %d, %d, %d, %d, %d", who,
	      is.pid, is.tid, is.ppid, is.sid, is.pgid, is.uid, was.pid, was.tid, was.ppid, was.sid, was.pgid, was.uid);
}

static volatile pid_t tid[3];

static void *thread(UNUSED void *arg)
{
	tid[0] = syscall(SYS_gettid);
	while (!tid[1])
		usleep(1000);
	tid[2] = syscall(SYS_gettid) == tid[0] ? 1 : 2;
	return NULL;
}

/* A session with a thread, in a user namespace further inside. */
static void leader(UNUSED void *arg)
{
	struct numbers was;
	pthread_t th;
	pid_t member;

	MUST(setsid());
	member = guest_child(guest_idle, NULL);
	MUST(setpgid(member, member));
	MUST(unshare(CLONE_NEWUSER));
	maps_itself("77 0 1\n");
	CHECK(!pthread_create(&th, NULL, thread, NULL), "pthread_create");
	while (!tid[0])
		usleep(1000);
	was = numbers();
	SAME("user of the leader", was.uid, 77);
	guest_child_ready_wait();

	if (SPOIL("leader"))
		was.uid = 78;
	same("the leader", was);
	if (SPOIL("group"))
		member++;
	SAME("a member's group", getpgid(member), member);
	tid[1] = 1;
	pthread_join(th, NULL);
	if (SPOIL("thread"))
		tid[2] = 2;
	SAME("the thread", tid[2], 1);
	guest_child_finish(member);
}

/* The first of a pid namespace in the pid namespace, of the same user namespace. */
static void deeper(UNUSED void *arg)
{
	struct numbers was = numbers();
	pid_t child = guest_child(guest_idle, NULL);

	SAME("pid of the deeper one", was.pid, 1);
	SAME("its child", child, 2);
	guest_child_ready_wait();
	same("the deeper one", was);
	owned("pid");
	if (SPOIL("deeper"))
		child++;
	MUST(kill(child, 0));
	guest_child_finish(child);
}

static void first(void *arg)
{
	pid_t session, low, orphan, child;
	struct numbers was;
	int status, sync[2];

	if (arg)
		maps_itself(arg);
	was = numbers();
	SAME("pid of the first process", was.pid, 1);
	SAME("its user", was.uid, 0);
	session = guest_child(leader, NULL);
	low = guest_child_flags(deeper, NULL, CLONE_NEWPID);
	/* adopted */
	MUST(pipe(sync));
	child = MUST(fork());
	if (!child) {
		orphan = MUST(fork());
		if (!orphan)
			for (;;)
				pause();
		MUST(write(sync[1], &orphan, sizeof(orphan)));
		_exit(0);
	}
	SAME("the parent", waitpid(child, NULL, 0), child);
	SAME("told", read(sync[0], &orphan, sizeof(orphan)), sizeof(orphan));
	close(sync[0]);
	close(sync[1]);
	guest_child_ready_wait();

	if (SPOIL("first"))
		was.ppid = 1;
	same("the first process", was);
	if (SPOIL("owner"))
		MUST(unshare(CLONE_NEWUSER));
	owned("pid");
	if (arg)
		owned("net");
	child = guest_child(guest_idle, NULL);
	CHECK(child > 1 && child != session && child != low, "a new child is %d", child);
	guest_child_finish(child);
	MUST(kill(orphan, SIGKILL));
	SAME("the orphan", waitpid(orphan, &status, 0), orphan);
	if (SPOIL("orphan"))
		status = 0;
	SAME("its end", status, SIGKILL);
	guest_child_finish(session);
	guest_child_finish(low);
}

/* Its child is the first process, as that of unshare(1). */
static void outer(UNUSED void *arg)
{
	ino_t own, childs;
	pid_t child;

	MUST(unshare(CLONE_NEWUSER | CLONE_NEWPID));
	maps_itself("0 0 1\n");
	child = guest_child(first, NULL);
	guest_child_ready_wait();

	own = inode(space("user"));
	childs = inode(space("pid_for_children"));
	CHECK(own && childs != inode(space("pid")), "its children are where it is");
	if (SPOIL("children"))
		child++;
	MUST(kill(child, 0));
	guest_child_finish(child);
}

static void told(pid_t pid, char *line, size_t len)
{
	char path[64];
	const char *at;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	at = strstr(guest_slurp(path), "NSpid:");
	CHECK(at, "no NSpid");
	snprintf(line, len, "%.*s", (int)strcspn(at, "\n"), at);
}

int main(int argc, char **argv)
{
	char was[64], is[64];
	pid_t one, two;

	guest_init(argc, argv);
	one = guest_child(outer, NULL);
	two = guest_child_flags(first, "0 0 1\n", CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET);
	told(two, was, sizeof(was));
	guest_ready_wait();

	told(two, is, sizeof(is));
	if (SPOIL("numbers"))
		is[0] = 0;
	CHECK(!strcmp(was, is), "%s, not %s", is, was);
	guest_child_finish(one);
	guest_child_finish(two);
	guest_pass();
}
