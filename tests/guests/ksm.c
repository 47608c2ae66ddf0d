/* MADV_MERGEABLE, and PR_SET_MEMORY_MERGE of a whole task. */
#include "guest.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

static int merges;

static void child(UNUSED void *arg)
{
	merges = !prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
	guest_child_ready_wait();
	if (SPOIL("task"))
		merges = !merges;
	CHECK((prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1) == merges, "memory merge of the task changed");
}

int main(int argc, char **argv)
{
	char *at;
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (madvise(at, 4 * PAGE, MADV_MERGEABLE))
		guest_skip("kernel without KSM");
	guest_fill(at, 4 * PAGE, 3);
	guest_ready_wait();
	if (SPOIL("flag"))
		madvise(at, PAGE, MADV_UNMERGEABLE);
	CHECK(guest_vmflag(at, "mg"), "MADV_MERGEABLE is lost: %s", guest_vmflags(at));
	CHECK(guest_filled(at, 4 * PAGE, 3), "contents changed");
	guest_child_finish(kid);
	guest_pass();
}
