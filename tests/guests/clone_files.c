/* Two tasks with one table of descriptors (CLONE_FILES). */
#include "guest.h"

static int made_by_child = -1;

static void child(UNUSED void *arg)
{
	/* guest_sync belongs to the shared table: the parent sees it closed when the wait begins. */
	guest_child_ready_wait();
	if (SPOIL("unshared"))
		unshare(CLONE_FILES);
	made_by_child = MUST(dup2(MUST(open("/dev/null", O_RDONLY)), 100));
	SAME("closed by the parent", fcntl(90, F_GETFD), -1);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	MUST(dup2(MUST(open("/dev/zero", O_RDONLY)), 90));
	/* The usual helper closes the write end of its pipe in both: here the table is one, so by hand. */
	{
		int sync[2];
		char c;

		MUST(pipe2(sync, O_CLOEXEC));
		kid = MUST(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
		if (!kid) {
			guest_sync = sync[1];
			child(NULL);
			_exit(0);
		}
		SAME("read", read(sync[0], &c, 1), 1);
		close(sync[0]);
		for (int i = 0; i < 1000 && fcntl(sync[1], F_GETFD) != -1; i++)
			usleep(100);
	}
	guest_ready_wait();
	if (SPOIL("own"))
		unshare(CLONE_FILES);
	SAME("same table", syscall(SYS_kcmp, getpid(), kid, 2, 0, 0), 0);
	close(90);
	guest_child_finish(kid);
	CHECK(fcntl(100, F_GETFD) != -1, "the child's descriptor is not seen");
	guest_pass();
}
