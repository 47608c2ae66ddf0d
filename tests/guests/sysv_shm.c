/* System V shared memory: attached twice (once read-only), shared with a child, a removed one that is still attached. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/shm.h>

static char *rw, *ro, *gone;

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	if (SPOIL("unshared"))
		mmap(rw, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	rw[PAGE] = 'c';
	gone[0] = 'g';
}

int main(int argc, char **argv)
{
	struct shmid_ds ds;
	int id, removed;
	pid_t kid;

	guest_init(argc, argv);
	id = MUST(shmget(0x5747a515, 8 * PAGE, IPC_CREAT | IPC_EXCL | 0640));
	rw = shmat(id, NULL, 0);
	ro = shmat(id, NULL, SHM_RDONLY);
	removed = MUST(shmget(IPC_PRIVATE, 2 * PAGE, IPC_CREAT | 0600));
	gone = shmat(removed, NULL, 0);
	CHECK(rw != (void *)-1 && ro != (void *)-1 && gone != (void *)-1, "shmat: %s", strerror(errno));
	MUST(shmctl(removed, IPC_RMID, NULL));
	guest_fill(rw, 8 * PAGE, 12);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("content"))
		rw[3 * PAGE] ^= 1;
	if (SPOIL("detached"))
		shmdt(ro);
	if (SPOIL("mode")) {
		shmctl(id, IPC_STAT, &ds);
		ds.shm_perm.mode = 0600;
		shmctl(id, IPC_SET, &ds);
	}
	CHECK(guest_filled(rw, 8 * PAGE, 12), "contents changed");
	guest_child_finish(kid);
	SAME("byte from the child", rw[PAGE], 'c');
	SAME("byte from the child in the removed one", gone[0], 'g');
	SAME("id behind the key", shmget(0x5747a515, 0, 0), id);
	MUST(shmctl(id, IPC_STAT, &ds));
	SAME("attached", ds.shm_nattch, 2);
	SAME("mode", ds.shm_perm.mode & 0777, 0640);
	SAME("size", ds.shm_segsz, 8 * PAGE);
	CHECK(strstr(guest_map(ro), " r--s "), "the read-only attachment is %s", guest_map(ro));
	SAME("byte in the read-only attachment", ro[PAGE], 'c');
	MUST(shmctl(id, IPC_RMID, NULL));
	guest_pass();
}
