/*
 * Pid namespaces below that of the root, two levels deep and beside each other: who is in them, what they see of each other, and
 * what the kernel says of them in numbers (parents, sessions, groups, senders of signals and messages, owners of files, threads of
 * timers). A task whose children are born in another namespace than its own, and one whose first child is still to come.
 */
#include "guest.h"
#include <sys/socket.h>

static ino_t space(pid_t whose, const char *sort)
{
	char path[64];
	struct stat st;

	if (whose)
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", whose, sort);
	else
		snprintf(path, sizeof(path), "/proc/self/ns/%s", sort);
	MUST(stat(path, &st));
	return st.st_ino;
}

/* Numbers as the task sees them. */
struct numbers {
	pid_t pid, tid, ppid, sid, pgid;
};

static struct numbers numbers(void)
{
	return (struct numbers){ getpid(), syscall(SYS_gettid), getppid(), getsid(0), getpgid(0) };
}

static void same(const char *who, struct numbers was)
{
	struct numbers is = numbers();

	CHECK(!memcmp(&is, &was, sizeof(is)), "%s: pid %d, thread %d, parent %d, session %d, group %d; not %d, %d, %d, %d, %d", who,
	      is.pid, is.tid, is.ppid, is.sid, is.pgid, was.pid, was.tid, was.ppid, was.sid, was.pgid);
}

static pid_t new_space(void (*body)(void *), void *arg)
{
	return guest_child_flags(body, arg, CLONE_NEWPID);
}

/* The first of the third level: its group and session are not seen there. */
static void deepest(UNUSED void *arg)
{
	struct numbers was = numbers();
	pid_t child = guest_child(guest_idle, NULL);

	SAME("pid of the first of the deepest namespace", was.pid, 1);
	SAME("its parent", was.ppid, 0);
	SAME("its session", was.sid, 0);
	SAME("its child", child, 2);
	guest_child_ready_wait();
	same("the deepest", was);
	if (SPOIL("deepest"))
		child = 1;
	SAME("a child of the deepest", child, 2);
	guest_child_finish(child);
}

static void *thread(void *tid)
{
	*(volatile pid_t *)tid = syscall(SYS_gettid);
	for (;;)
		pause();
	return NULL;
}

/* A session in the second level: with a thread to which a timer speaks, which sends a signal and a message to the first process. */
static void leader(void *arg)
{
	struct itimerspec in = { .it_value.tv_sec = 1000 }, left;
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2 };
	volatile pid_t tid = 0;
	struct numbers was;
	pthread_t th;
	timer_t timer;
	pid_t member;

	MUST(setsid());
	member = guest_child(guest_idle, NULL);
	MUST(setpgid(member, member));
	CHECK(!pthread_create(&th, NULL, thread, (void *)&tid), "pthread_create");
	while (!tid)
		usleep(1000);
	ev._sigev_un._tid = tid;
	MUST(timer_create(CLOCK_MONOTONIC, &ev, &timer));
	MUST(timer_settime(timer, 0, &in, NULL));
	was = numbers();
	MUST(sigqueue(1, SIGUSR1, (union sigval){ .sival_int = 7 }));
	SAME("bytes sent", send(*(int *)arg, "hello", 5, 0), 5);
	guest_child_ready_wait();

	if (SPOIL("session"))
		was.sid++;
	same("the leader", was);
	SAME("a member's session", getsid(member), getpid());
	if (SPOIL("group"))
		MUST(setpgid(member, getpid()));
	SAME("a member's group", getpgid(member), member);
	if (SPOIL("thread"))
		tid++;
	MUST(syscall(SYS_tgkill, getpid(), tid, 0));
	MUST(timer_gettime(timer, &left));
	CHECK(left.it_value.tv_sec > 0 && left.it_value.tv_sec <= 1000, "the timer has %ld s left", (long)left.it_value.tv_sec);
	guest_child_finish(member);
}

/* The first of the second level. */
static void first(UNUSED void *arg)
{
	char buf[16], control[128];
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct f_owner_ex owner = { F_OWNER_PID, 0 }, is;
	int pair[2], on = 1, random, status;
	struct ucred cred;
	struct numbers was;
	pid_t kid, low, zombie;
	siginfo_t si;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	MUST(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	MUST(setpgid(0, 0));
	zombie = MUST(fork());
	if (!zombie)
		_exit(9);
	MUST(waitid(P_PID, zombie, &si, WEXITED | WNOWAIT));
	kid = guest_child(leader, &pair[1]);
	low = new_space(deepest, NULL);
	random = MUST(open("/dev/random", O_RDONLY));
	owner.pid = kid;
	MUST(fcntl(random, F_SETOWN_EX, &owner));
	was = numbers();
	SAME("pid of the first process", was.pid, 1);
	guest_child_ready_wait();

	if (SPOIL("first"))
		was.ppid = 1;
	same("the first process", was);
	memset(&si, 0, sizeof(si));
	MUST(sigwaitinfo(&set, &si));
	if (SPOIL("sender"))
		si.si_pid++;
	SAME("sender of the signal", si.si_pid, kid);
	SAME("its value", si.si_value.sival_int, 7);
	MUST(recvmsg(pair[0], &m, 0));
	memcpy(&cred, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(cred));
	if (SPOIL("message"))
		cred.pid++;
	SAME("sender of the message", cred.pid, kid);
	if (SPOIL("owner")) {
		owner.pid = low;
		MUST(fcntl(random, F_SETOWN_EX, &owner));
	}
	MUST(fcntl(random, F_GETOWN_EX, &is));
	SAME("owner of the file", is.pid, kid);
	if (SPOIL("zombie"))
		MUST(waitpid(zombie, NULL, 0));
	SAME("the zombie", waitpid(zombie, &status, 0), zombie);
	SAME("its end", status, 9 << 8);
	guest_child_finish(kid);
	guest_child_finish(low);
}

/* Children born in another namespace: two are there, one comes later. */
static void beside(UNUSED void *arg)
{
	pid_t one, two, three;
	ino_t there;
	int pidfd;

	MUST(unshare(CLONE_NEWPID));
	one = guest_child(guest_idle, NULL);
	two = guest_child(guest_idle, NULL);
	SAME("namespace of the children", space(0, "pid_for_children"), space(one, "pid"));
	guest_child_ready_wait();

	SAME("namespace of the second child", space(two, "pid"), space(one, "pid"));
	there = space(one, "pid");
	CHECK(space(0, "pid") != there, "the children are where their parent is");
	if (SPOIL("children")) {
		pidfd = MUST(syscall(SYS_pidfd_open, getpid(), 0));
		MUST(setns(pidfd, CLONE_NEWPID));
	}
	three = guest_child(guest_idle, NULL);
	SAME("namespace of a late child", space(three, "pid"), there);
	guest_child_finish(three);
	guest_child_finish(two);
	guest_child_finish(one);
}

static void is_first(UNUSED void *arg)
{
	SAME("pid of the first child", getpid(), 1);
	guest_child_ready_wait();
}

/* Its children will be born in a namespace that nobody is in yet. */
static void expecting(UNUSED void *arg)
{
	MUST(unshare(CLONE_NEWPID));
	guest_child_ready_wait();
	guest_child_finish(guest_child(is_first, NULL));
}

int main(int argc, char **argv)
{
	char path[64], line[128];
	pid_t below, other, last;
	const char *told;
	int pidfd;

	guest_init(argc, argv);
	below = new_space(first, NULL);
	other = guest_child(beside, NULL);
	last = guest_child(expecting, NULL);
	pidfd = MUST(syscall(SYS_pidfd_open, below, 0));

	guest_ready_wait();

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	told = guest_slurp(path);
	snprintf(line, sizeof(line), "NSpid:\t%d\t%d\n", below, SPOIL("pidfd") ? 2 : 1);
	CHECK(strstr(told, line), "%s tells %s", path, told);
	CHECK(space(below, "pid") != space(0, "pid"), "the first one is not in a namespace of its own");
	CHECK(space(below, "pid") != space(other, "pid"), "both are in one namespace");
	guest_child_finish(below);
	guest_child_finish(other);
	guest_child_finish(last);
	guest_pass();
}
