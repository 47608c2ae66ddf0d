/* System V shared memory of an own IPC namespace: attached, not attached, removed and still attached, never touched. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/shm.h>

int main(int argc, char **argv)
{
	struct shmid_ds ds;
	int id, loose, removed, empty;
	char *at, *gone, *p;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWIPC);
	empty = MUST(shmget(0x777, 3 * PAGE, IPC_CREAT | 0644));
	id = MUST(shmget(0x778, 8 * PAGE, IPC_CREAT | IPC_EXCL | 0640));
	loose = MUST(shmget(IPC_PRIVATE, 5000, IPC_CREAT | 0600));
	removed = MUST(shmget(IPC_PRIVATE, 2 * PAGE, IPC_CREAT | 0600));
	at = shmat(id, NULL, 0);
	gone = shmat(removed, NULL, 0);
	CHECK(at != (void *)-1 && gone != (void *)-1, "shmat: %s", strerror(errno));
	MUST(shmctl(removed, IPC_RMID, NULL));
	guest_fill(at, 8 * PAGE, 12);
	guest_fill(gone, 2 * PAGE, 13);
	p = shmat(loose, NULL, 0);
	guest_fill(p, 5000, 14);
	shmdt(p);
	MUST(shmctl(loose, IPC_STAT, &ds));
	ds.shm_perm.uid = 77;
	MUST(shmctl(loose, IPC_SET, &ds));
	guest_ready_wait();
	if (SPOIL("content"))
		at[3 * PAGE] ^= 1;
	if (SPOIL("detached"))
		shmdt(at), at = mmap(at, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		guest_fill(at, 8 * PAGE, 12);
	if (SPOIL("loose")) {
		p = shmat(loose, NULL, 0);
		p[4999] ^= 1;
		shmdt(p);
	}
	if (SPOIL("removed"))
		gone[PAGE] ^= 1;
	if (SPOIL("empty"))
		shmctl(empty, IPC_RMID, NULL);
	CHECK(guest_filled(at, 8 * PAGE, 12), "contents changed");
	CHECK(guest_filled(gone, 2 * PAGE, 13), "contents of the removed one changed");
	SAME("id behind the key", shmget(0x778, 0, 0), id);
	MUST(shmctl(id, IPC_STAT, &ds));
	SAME("attached", ds.shm_nattch, 1);
	SAME("mode", ds.shm_perm.mode & 0777, 0640);
	SAME("id of the empty one", shmget(0x777, 0, 0), empty);
	MUST(shmctl(loose, IPC_STAT, &ds));
	SAME("owner", ds.shm_perm.uid, 77);
	SAME("size", ds.shm_segsz, 5000);
	SAME("attached", ds.shm_nattch, 0);
	p = shmat(loose, NULL, 0);
	CHECK(guest_filled(p, 5000, 14), "contents of the one that nobody has attached changed");
	MUST(shmctl(removed, IPC_STAT, &ds));
	CHECK(ds.shm_perm.mode & SHM_DEST, "it is not removed any more");
	guest_pass();
}
