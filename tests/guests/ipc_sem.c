/* System V semaphores of an own IPC namespace: values, owner, mode, key and id; a hole among the ids; sysctls. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static void put(const char *file, const char *text)
{
	int fd = MUST(open(file, O_WRONLY | O_CLOEXEC));

	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static const char *get(const char *file)
{
	static char text[128];
	int fd = MUST(open(file, O_RDONLY | O_CLOEXEC));
	ssize_t n = MUST(read(fd, text, sizeof(text) - 1));

	text[n] = 0;
	close(fd);
	return text;
}

int main(int argc, char **argv)
{
	unsigned short was[5] = { 0, 1, 7, 32767, 3 }, is[5];
	struct semid_ds ds;
	int id, gone, other;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWIPC);
	put("/proc/sys/kernel/sem", "300 32100 50 130");
	put("/proc/sys/kernel/msgmax", "9000");
	put("/proc/sys/fs/mqueue/msg_max", "12");
	gone = MUST(semget(IPC_PRIVATE, 1, 0600));
	id = MUST(semget(0x5e3a, 5, IPC_CREAT | IPC_EXCL | 0640));
	other = MUST(semget(IPC_PRIVATE, 3, 0604));
	MUST(semctl(gone, 0, IPC_RMID));
	MUST(semctl(id, 0, SETALL, was));
	MUST(semctl(id, 0, IPC_STAT, &ds));
	ds.sem_perm.uid = 1234;
	ds.sem_perm.gid = 99;
	MUST(semctl(id, 0, IPC_SET, &ds));
	guest_ready_wait();
	if (SPOIL("value"))
		semctl(id, 2, SETVAL, 8);
	if (SPOIL("owner")) {
		ds.sem_perm.uid = 0;
		semctl(id, 0, IPC_SET, &ds);
	}
	if (SPOIL("removed"))
		semctl(other, 0, IPC_RMID);
	if (SPOIL("sysctl"))
		put("/proc/sys/kernel/sem", "300 32100 50 131");
	if (SPOIL("mqueue"))
		put("/proc/sys/fs/mqueue/msg_max", "13");
	SAME("id behind the key", semget(0x5e3a, 0, 0), id);
	MUST(semctl(id, 0, GETALL, is));
	for (int i = 0; i < 5; i++)
		SAME("value", is[i], was[i]);
	MUST(semctl(id, 0, IPC_STAT, &ds));
	SAME("owner", ds.sem_perm.uid, 1234);
	SAME("group", ds.sem_perm.gid, 99);
	SAME("mode", ds.sem_perm.mode, 0640);
	SAME("number of semaphores", ds.sem_nsems, 5);
	MUST(semctl(other, 0, IPC_STAT, &ds));
	SAME("number of semaphores of the other", ds.sem_nsems, 3);
	SAME("mode of the other", ds.sem_perm.mode, 0604);
	CHECK(semctl(gone, 0, IPC_STAT, &ds) == -1, "a removed set is back");
	CHECK(!strcmp(get("/proc/sys/kernel/sem"), "300\t32100\t50\t130\n"), "kernel.sem is %s", get("/proc/sys/kernel/sem"));
	CHECK(!strcmp(get("/proc/sys/kernel/msgmax"), "9000\n"), "kernel.msgmax is %s", get("/proc/sys/kernel/msgmax"));
	CHECK(!strcmp(get("/proc/sys/fs/mqueue/msg_max"), "12\n"), "fs.mqueue.msg_max is %s",
	      get("/proc/sys/fs/mqueue/msg_max"));
	guest_pass();
}
