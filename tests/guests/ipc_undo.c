/*
 * What SEM_UNDO would undo: values stay as they are while the processes live, and change as they should when one ends. Two
 * processes, two sets, semaphores at both ends of what they can have, a thread that shares its process's list, a set that is gone.
 */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int one, two;

static void op(int set, int n, int by, int flags)
{
	struct sembuf b = { .sem_num = n, .sem_op = by, .sem_flg = IPC_NOWAIT | flags };

	MUST(semop(set, &b, 1));
}

static void *in_thread(void *arg UNUSED)
{
	op(one, 3, -4, SEM_UNDO);
	return NULL;
}

static void body(void *arg UNUSED)
{
	pthread_t thread;

	op(one, 0, -2, SEM_UNDO);
	op(one, 1, -32767, SEM_UNDO);
	op(one, 2, 32767, SEM_UNDO);
	op(one, 4, -1, SEM_UNDO);
	op(one, 4, 1, 0);
	op(two, 0, 10, SEM_UNDO);
	MUST(pthread_create(&thread, NULL, in_thread, NULL));
	pthread_join(thread, NULL);
	guest_child_ready_wait();
}

static void values(const char *when, const unsigned short *first, unsigned short second)
{
	unsigned short is[5];
	char what[64];

	MUST(semctl(one, 0, GETALL, is));
	for (int i = 0; i < 5; i++) {
		snprintf(what, sizeof(what), "value %d %s", i, when);
		SAME(what, is[i], first[i]);
	}
	SAME(when, semctl(two, 0, GETVAL), second);
}

int main(int argc, char **argv)
{
	unsigned short start[5] = { 5, 32767, 0, 9, 32767 };
	pid_t child;
	int gone;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWIPC);
	one = MUST(semget(0x5e3b, 5, IPC_CREAT | IPC_EXCL | 0600));
	gone = MUST(semget(IPC_PRIVATE, 1, 0600));
	two = MUST(semget(IPC_PRIVATE, 1, 0600));
	MUST(semctl(one, 0, SETALL, start));
	op(gone, 0, 1, SEM_UNDO);
	op(two, 0, 3, SEM_UNDO);
	MUST(semctl(gone, 0, IPC_RMID));
	op(one, 0, -1, SEM_UNDO);
	child = guest_child(body, NULL);
	/* more than its list would take back */
	op(one, 4, -7, 0);
	guest_ready_wait();
	if (SPOIL("value"))
		op(one, 0, 1, 0);
	if (SPOIL("forgotten"))
		semctl(two, 0, SETVAL, 13);
	values("before", (unsigned short[]){ 2, 0, 32767, 5, 32760 }, 13);
	guest_child_finish(child);
	values("after", (unsigned short[]){ 4, 32767, 0, 9, 32761 }, 3);
	guest_pass();
}
