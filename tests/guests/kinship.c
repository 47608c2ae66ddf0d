/*
 * Places in a tree that no plain sequence of forks leads to: children from before their parent's setsid, orphans of
 * sessions that live on elsewhere, groups whose maker left them, sessions and groups of zombies. The root, a
 * subreaper, compares parent, session and group of all of them.
 */
#include "guest.h"

enum { EARLY, EARLY_KID, LEADER, ADOPTED, INNER, INNER_ADOPTED, MAKER, JOINER, SWAP_A, SWAP_B, DOUBLE, ZOMBIE, ZOMBIE_KID, PAIR_A, PAIR_B, N };
struct place {
	pid_t pid, parent, session, group;
};
static struct place before[N];
static int report[2];

/* A task that ended as a child of the root, for it to reap. */
static pid_t father;

static void tell(int who)
{
	pid_t said[3] = { who, getpid(), father };

	if (write(report[1], said, sizeof(said)) != sizeof(said))
		_exit(3);
}

/* A member of the tree: says who it is, and waits for its end. */
static void stay(int who)
{
	tell(who);
	guest_wait();
	_exit(0);
}

/* Waits until the parent is gone and the root has adopted the caller. */
static void orphaned(void)
{
	while (getppid() != guest_root)
		usleep(300);
}

static void early(void)
{
	if (!fork())
		stay(EARLY_KID);
	MUST(setsid());
	stay(EARLY);
}

static void leader(void)
{
	MUST(setsid());
	if (!fork()) {
		if (!fork()) {
			orphaned();
			stay(ADOPTED);
		}
		_exit(0);
	}
	MUST(wait(NULL));
	if (!fork()) {
		/* A session below the session; its orphan goes past both. */
		MUST(setsid());
		if (!fork()) {
			if (!fork()) {
				orphaned();
				MUST(setpgid(0, 0));
				stay(INNER_ADOPTED);
			}
			_exit(0);
		}
		MUST(wait(NULL));
		stay(INNER);
	}
	stay(LEADER);
}

static void maker(void)
{
	int go[2];
	char c;

	MUST(setpgid(0, 0));
	MUST(pipe(go));
	if (!fork()) {
		close(go[0]);
		tell(JOINER);
		close(go[1]);
		guest_wait();
		_exit(0);
	}
	close(go[1]);
	if (read(go[0], &c, 1))
		_exit(3);
	close(go[0]);
	/* Back to the root's group; the one it made lives on. */
	MUST(setpgid(0, guest_root));
	stay(MAKER);
}

/* Two tasks that lead the groups of each other. */
static void swap(void)
{
	pid_t own = getpid(), kid, keep;

	MUST(setpgid(0, 0));
	kid = MUST(fork());
	if (!kid)
		stay(SWAP_B);
	MUST(setpgid(kid, kid));
	keep = MUST(fork());
	if (!keep) {
		pause();
		_exit(0);
	}
	/* `keep` is in this task's group: it lasts until the other has come. */
	MUST(setpgid(0, kid));
	MUST(setpgid(kid, own));
	kill(keep, SIGKILL);
	MUST(waitpid(keep, NULL, 0));
	stay(SWAP_A);
}

/* Twice an orphan: its father and its father's father end. The group is that of the first of them. */
static void doubly(void)
{
	MUST(setpgid(0, 0));
	if (!fork()) {
		orphaned();
		father = getpid();
		if (!fork()) {
			orphaned();
			stay(DOUBLE);
		}
		_exit(0);
	}
	_exit(0);
}

static void zombie(void)
{
	MUST(setsid());
	if (!fork()) {
		orphaned();
		stay(ZOMBIE_KID);
	}
	tell(ZOMBIE);
	_exit(0);
}

/* Two of a session and of a group that both have no leader any more; one is the other's child. */
static void pair(void)
{
	MUST(setsid());
	if (!fork()) {
		MUST(setpgid(0, 0));
		if (!fork()) {
			orphaned();
			if (!fork())
				stay(PAIR_B);
			stay(PAIR_A);
		}
		_exit(0);
	}
	wait(NULL);
	_exit(0);
}

static struct place look(pid_t pid)
{
	struct place p = { .pid = pid, .session = getsid(pid), .group = getpgid(pid) };
	char path[64];
	const char *stat;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	stat = strrchr(guest_slurp(path), ')');
	if (!stat || sscanf(stat, ") %*c %d", &p.parent) != 1)
		p.parent = 0;
	return p;
}

int main(int argc, char **argv)
{
	static void (*const makers[])(void) = { early, leader, maker, swap, doubly, zombie, pair };
	int status, passing = 0, zombies = 0;
	pid_t kid, gone[3] = { 0 };

	guest_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe(report));
	for (unsigned i = 0; i < sizeof(makers) / sizeof(*makers); i++) {
		kid = MUST(fork());
		if (!kid) {
			makers[i]();
			_exit(3);
		}
		if (makers[i] == doubly || makers[i] == pair)
			gone[passing++] = kid;
	}
	for (int i = 0; i < N; i++) {
		pid_t said[3];

		SAME("report", read(report[0], said, sizeof(said)), sizeof(said));
		before[said[0]].pid = said[1];
		if (said[2])
			MUST(waitpid(said[2], NULL, 0));
	}
	for (int i = 0; i < passing; i++)
		MUST(waitpid(gone[i], NULL, 0));
	close(report[0]);
	close(report[1]);
	for (int i = 0; i < N; i++)
		before[i] = look(before[i].pid);
	CHECK(before[EARLY_KID].parent == before[EARLY].pid && before[EARLY_KID].session == guest_root, "no early child");
	CHECK(before[ADOPTED].parent == guest_root && before[ADOPTED].session == before[LEADER].pid, "none adopted");
	CHECK(before[INNER_ADOPTED].parent == guest_root && before[INNER_ADOPTED].session == before[INNER].pid, "none adopted from within");
	CHECK(before[MAKER].group == guest_root && before[JOINER].group == before[MAKER].pid, "no group without its maker");
	CHECK(before[SWAP_A].group == before[SWAP_B].pid && before[SWAP_B].group == before[SWAP_A].pid, "not swapped");
	CHECK(before[DOUBLE].group == gone[0] && before[PAIR_B].session == gone[1], "leaders are not gone");
	CHECK(before[ZOMBIE_KID].session == before[ZOMBIE].pid, "no session of a zombie");
	guest_ready_wait();
	if (SPOIL("group"))
		MUST(setpgid(before[DOUBLE].pid, before[DOUBLE].pid));
	if (SPOIL("parent"))
		kill(before[EARLY].pid, SIGKILL);
	if (SPOIL("session"))
		before[ADOPTED].session++;
	if (SPOIL("parent"))
		waitpid(before[EARLY].pid, NULL, 0);
	for (int i = 0; i < N; i++) {
		struct place p = look(before[i].pid);

		CHECK(p.parent == before[i].parent, "task %d: parent is %d, not %d", i, p.parent, before[i].parent);
		CHECK(p.session == before[i].session, "task %d: session is %d, not %d", i, p.session, before[i].session);
		CHECK(p.group == before[i].group, "task %d: group is %d, not %d", i, p.group, before[i].group);
	}
	for (int i = 0; i < N; i++)
		MUST(kill(before[i].pid, SIGTERM));
	for (int i = 0; i < N; i++) {
		kid = MUST(wait(&status));
		SAME("status", status, 0);
		zombies += kid == before[ZOMBIE].pid;
	}
	SAME("zombies", zombies, 1);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there are more children than before");
	guest_pass();
}
