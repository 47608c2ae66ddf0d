/* mlockall: present memory is locked, memory mapped later is locked too; the parent is not. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	char *late;

	MUST(mlockall(MCL_CURRENT | MCL_FUTURE));
	guest_child_ready_wait();
	if (SPOIL("both"))
		munlockall();
	if (SPOIL("future"))
		mlockall(MCL_CURRENT);
	late = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*late = 1;
	CHECK(guest_vmflag(&guest_root, "lo"), "present memory is not locked");
	CHECK(guest_vmflag(late, "lo"), "memory mapped later is not locked");
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	CHECK(!guest_vmflag(&guest_root, "lo"), "the parent's memory is locked");
	guest_child_finish(kid);
	guest_pass();
}
